"""What the trainings of ``benchmarks.training`` come to: figures of one, a table of many, and how they compare."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from validation.statistics.metrics import NAMES, Scored, summarise
from validation.statistics.report_metrics import calibration_error
from validation.statistics.threshold import choose_threshold

# A row of the table: what it is called, its name in a result or in the result's metrics, and its decimals.
ROWS = (
    *((name.replace("_", " "), name, 4) for name in NAMES),
    ("log loss", "log_loss", 4),
    ("calibration error", "calibration_error", 4),
    ("seconds", "seconds", 0),
    ("CPU seconds", "cpu_seconds", 0),
    ("images/s", "images_per_second", 0),
    ("GFLOP/s", "gflops", 0),
    ("share of the roofline", "roofline_share", 2),
    ("peak MiB", "peak_mib", 0),
    ("load at its end", "load", 1),
)


def figures(scored: Scored) -> dict[str, Any]:
    """Return what a result says of the cells that were left out: metrics, log loss, calibration error, threshold."""
    summary = summarise(scored)
    found = {name: interval.value for name in NAMES if (interval := getattr(summary, name)) is not None}
    return {
        "metrics": found | {"log_loss": summary.log_loss},
        "calibration_error": calibration_error(scored),
        "threshold": scored.threshold,
    }


def judged(result: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of a result by today's rules, from the predictions that it holds."""
    sides = []
    for name in ("chosen_on", "predictions"):
        side = result[name]
        codes, _ = pd.factorize(np.array(side["patient"]), sort=True)
        sides.append((np.array(side["label"], bool), np.array(side["probability"]), codes.astype(np.int64)))
    return figures(Scored(*sides[1], choose_threshold(*sides[0], prevalence=result["prevalence"])))


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return a table of every CNN and question, a column each: mean and standard deviation."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        question = "a fold each" if result["seed"] == 1 else "fold 0, other seeds"
        groups.setdefault(f"{result['model']}, {question}", []).append(result | result["metrics"])
    names = sorted(groups)
    lines = [["", *names], ["trainings", *(str(len(groups[name])) for name in names)]]
    for title, key, decimals in ROWS:
        lines.append([title, *(_cell([result.get(key) for result in groups[name]], decimals) for name in names)])
    return "\n".join([*aligned(lines), "", *against_references(results)])


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Return a line of text for each line of cells, the columns below each other."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _cell(values: Sequence[float | None], decimals: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    spread = f" ± {np.std(known, ddof=1):.{decimals}f}" if len(known) > 1 else ""
    return f"{np.mean(known):.{decimals}f}{spread}"


def against_references(results: Sequence[dict[str, Any]]) -> list[str]:
    """Return how long each reference took, and how much sooner ours was as good on the same tuning patients.

    As good by the share of cells called right, which is coarse, and by the calibrated loss.
    """
    lines = []
    for reference in results:
        if reference.get("extrapolated"):
            lines.append(
                f"{reference['model']}: {reference['seconds']:.0f} s, extrapolated from {reference['share']:.0%}"
            )
        ours = [r for r in results if f"notebook-{r['model']}" == reference["model"] and r["fold"] == reference["fold"]]
        for name, values, is_as_good in (
            ("accuracy", "valid_accuracies", operator.ge),
            ("loss", "valid_losses", operator.le),
        ):
            if (reached := reference.get(f"valid_{name}")) is None or not ours:
                continue
            ratios = [reference["seconds"] / seconds_until(result, values, is_as_good, reached) for result in ours]
            lines.append(
                f"{reference['model']}: validation {name} {reached:.4f} after {reference['seconds']:.0f} s;"
                f" ours is there {float(np.median(ratios)):.1f} times sooner ({min(ratios):.1f} to {max(ratios):.1f})"
            )
    return lines


def seconds_until(
    result: dict[str, Any], values: str, is_as_good: Callable[[float, float], bool], goal: float
) -> float:
    """Return the seconds of training until an epoch was as good on the tuning patients; inf if none was."""
    spent = 0.0
    for value, seconds in zip(result[values], result["epoch_seconds"], strict=True):
        spent += seconds
        if is_as_good(value, goal):
            return float(spent)
    return float("inf")
