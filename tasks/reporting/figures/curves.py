"""Drawings of models' scores on the judged cells: ROC, precision-recall, calibration, histograms."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.reporting.figures.svg import (
    INK,
    LINE,
    ROLE_COLOURS,
    SOFT,
    STYLES,
    TITLES,
    Role,
    errorbars,
    figure,
    legend_above,
    render,
)
from validation.records import NEGATIVE, POSITIVE
from validation.statistics.metrics import Scored
from validation.statistics.report_metrics import CalibrationBin

Floats = NDArray[np.float64]
# The side of the square in which curves of good models differ.
CORNER = 0.25


def _called(scored: Scored) -> NDArray[np.bool_]:
    """Return the cells that a model calls infected."""
    return scored.probabilities >= scored.threshold


def roc_plot(models: Mapping[Role, Scored]) -> str | None:
    """Draw sensitivity against the false alarm rate, thresholds marked; None where a class has no cells."""
    from sklearn.metrics import roc_curve

    def curve(scored: Scored) -> tuple[Floats, Floats]:
        false_alarms, sensitivity, _ = roc_curve(scored.labels, scored.probabilities)
        return false_alarms, sensitivity

    def point(scored: Scored) -> tuple[float, float]:
        called = _called(scored)
        return float(called[~scored.labels].mean()), float(called[scored.labels].mean())

    labels = ("False alarm rate (1 − specificity)", "Sensitivity")
    return _curves("roc", models, curve, point, labels)


def precision_recall_plot(models: Mapping[Role, Scored]) -> str | None:
    """Draw precision against sensitivity, thresholds marked; None where a class has no cells."""
    from sklearn.metrics import precision_recall_curve

    def curve(scored: Scored) -> tuple[Floats, Floats]:
        precision, recall, _ = precision_recall_curve(scored.labels, scored.probabilities, drop_intermediate=True)
        return recall, precision

    def point(scored: Scored) -> tuple[float, float]:
        called = _called(scored)
        return float(called[scored.labels].mean()), float(scored.labels[called].mean()) if called.any() else 1.0

    return _curves("pr", models, curve, point, ("Sensitivity (recall)", "Precision"))


def _curves(
    name: str,
    models: Mapping[Role, Scored],
    curve: Callable[[Scored], tuple[Floats, Floats]],
    point: Callable[[Scored], tuple[float, float]],
    labels: tuple[str, str],
) -> str | None:
    """Draw the corner of good models, and as much more of the square as the marks need."""
    if not models or not all(0 < scored.labels.sum() < len(scored.labels) for scored in models.values()):
        return None
    where = {role: point(scored) for role, scored in models.items()}

    def draw() -> Any:
        drawing, axes = figure(top=0.97 - 0.055 * len(models))
        for role, scored in models.items():
            line, marker = STYLES[role]
            x, y = where[role]
            style = {"color": ROLE_COLOURS[role], "linestyle": line, "marker": marker}
            axes.plot(*curve(scored), **style | {"marker": ""})
            axes.plot([x], [y], markersize=8, markeredgecolor="#ffffff", clip_on=False, zorder=5, **style)
            axes.plot([], [], markersize=7, label=f"{TITLES[role]}, threshold {scored.threshold:.3f}", **style)
        xs, ys = zip(*where.values(), strict=True)
        across = (-0.002, max(CORNER, 1.1 * max(xs))) if name == "roc" else (min(1 - CORNER, 0.95 * min(xs)), 1.002)
        axes.set(xlabel=labels[0], ylabel=labels[1], xlim=across, ylim=(min(1 - CORNER, 0.95 * min(ys)), 1.005))
        axes.grid(True)
        legend_above(axes)
        return drawing

    marks = "; ".join(f"{TITLES[role]} at {x:.3f}, {y:.3f}" for role, (x, y) in where.items())
    return render(draw, name, f"{labels[1]} against {labels[0]}. At its threshold: {marks}.")


def score_plot(role: Role, scored: Scored) -> str:
    """Draw the cells by score, a panel for each class, those on the wrong side of the threshold filled dark."""
    edges, called = _edges(scored.threshold), _called(scored)
    panels = [(POSITIVE, scored.labels, ~called, "missed"), (NEGATIVE, ~scored.labels, called, "false alarms")]

    def draw() -> Any:
        drawing, axes = figure(2, top=0.93, hspace=0.28)
        for axis, (label, of_class, wrong, mistake) in zip(axes, panels, strict=True):
            _panel(axis, scored, edges, of_class, wrong)
            axis.axvline(scored.threshold, color=ROLE_COLOURS[role], linestyle=(0, (4, 2)))
            title = f"{TITLES[role]} · {label}: {of_class.sum():,} cells, {(of_class & wrong).sum():,} {mistake}"
            axis.set_title(title, fontsize=11, loc="left")
        axes[1].set_xlabel(f"Probability of {POSITIVE}; dashed: threshold {scored.threshold:.3f}")
        drawing.supylabel("Cells (square-root scale)", fontsize=11, x=0.01)
        return drawing

    counts = ", ".join(
        f"{(of_class & wrong).sum()} {mistake} of {of_class.sum()} {label}"
        for label, of_class, wrong, mistake in panels
    )
    return render(draw, f"scores-{role}", f"Histogram of scores by class, {TITLES[role]}: {counts}.")


def _edges(threshold: float) -> Floats:
    """Return bins about 0.05 wide with an edge on the threshold, so that no bin has both right and wrong cells."""
    if not 0 < threshold < 1:
        return np.linspace(0, 1, 21)
    below, above = max(1, round(threshold / 0.05)), max(1, round((1 - threshold) / 0.05))
    return np.concatenate([np.linspace(0, threshold, below + 1), np.linspace(threshold, 1, above + 1)[1:]])


def _panel(axis: Any, scored: Scored, edges: Floats, of_class: NDArray[np.bool_], wrong: NDArray[np.bool_]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    most = 1.0
    for cells, colour in ((of_class & ~wrong, LINE), (of_class & wrong, INK)):
        counts, _ = np.histogram(scored.probabilities[cells], edges)
        most = max(most, float(counts.max()))
        axis.bar(edges[:-1], counts, np.diff(edges), align="edge", color=colour, edgecolor=SOFT, linewidth=0.6)
    # Its zero is on the axis, and a single cell can be seen.
    axis.set_yscale("function", functions=(lambda count: np.sqrt(np.maximum(count, 0)), np.square))
    axis.set(xlim=(0, 1), ylim=(0, 1.1 * most))
    axis.yaxis.set_major_locator(FixedLocator([0, *(10**power for power in range(math.ceil(math.log10(most)) + 1))]))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.yaxis.set_minor_locator(NullLocator())


def calibration_plot(models: Mapping[Role, Sequence[CalibrationBin]]) -> str | None:
    """Draw the observed share of infected cells against their probability, a point for each tenth of the cells."""
    shown = {role: bins for role, bins in models.items() if bins}
    if not shown:
        return None

    def draw() -> Any:
        drawing, axes = figure(top=0.97 - 0.055 * len(shown))
        axes.plot([0, 1], [0, 1], color=SOFT, linewidth=0.9, linestyle=(0, (1, 2)))
        for role, bins in shown.items():
            line, marker = STYLES[role]
            errorbars(
                axes, [b.predicted for b in bins], [b.observed for b in bins], color=ROLE_COLOURS[role], linestyle=line,
                marker=marker, markersize=6, elinewidth=0.9, capsize=2.5, label=TITLES[role], clip_on=False,
            )  # fmt: skip
        axes.set(xlabel=f"Mean probability of {POSITIVE} in the bin", ylabel=f"Share of {POSITIVE} cells in the bin")
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
        axes.grid(True)
        legend_above(axes)
        return drawing

    counts = "; ".join(f"{TITLES[role]}, {len(bins)} bins" for role, bins in shown.items())
    return render(draw, "calibration", f"Calibration: observed share against given probability. {counts}.")
