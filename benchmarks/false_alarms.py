"""How often each image check fires on good cells, and how often on harmed ones.

    python -m benchmarks.false_alarms CELLS_FOLDER [--json FILE]

CELLS_FOLDER holds <Class>/<name>.png. Bounds are learned from the patients of one half and applied to the others, 20
random halves; again from 20 and from 8 patients; and from all images to themselves. Nothing is written but the JSON.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from validation.images.decode import RGB, Decoded, decode
from validation.images.facts import FACT_NAMES, ImageFacts, judge_image, learn_bounds
from validation.images.fingerprints import ALIKE, near_duplicates
from validation.images.measure import cell_mask, inspect, measure
from validation.patients import patient_of
from validation.rules import DataRules

RULES = DataRules()
DRAWS = 20
SAMPLE = 400


def _on_cell(change: Callable[[RGB], Any]) -> Callable[[RGB], Any]:
    """Change the cell's own pixels and leave the black as it is."""
    return lambda rgb: np.where(cell_mask(rgb)[..., None] > 0, np.clip(change(rgb), 0, 255), 0).astype(np.uint8)


def _blurred(sigma: float) -> Callable[[RGB], Any]:
    return _on_cell(lambda rgb: cv2.GaussianBlur(rgb, (0, 0), sigma))


def _times(factor: float) -> Callable[[RGB], Any]:
    return _on_cell(lambda rgb: rgb.astype(np.float32) * factor)


def _channels(*order: int) -> Callable[[RGB], Any]:
    return lambda rgb: np.ascontiguousarray(rgb[..., list(order)])


def _beside_another(rgb: RGB) -> RGB:
    return np.hstack([rgb, np.zeros((rgb.shape[0], 6, 3), np.uint8), rgb])


# What was done to a cell -> the check that should notice.
HARMED: dict[str, tuple[Callable[[RGB], Any], str]] = {
    "blurred, sigma 1 px": (_blurred(1), "out of focus"),
    "blurred, sigma 1.5 px": (_blurred(1.5), "out of focus"),
    "blurred, sigma 2 px": (_blurred(2), "out of focus"),
    "blurred, sigma 3 px": (_blurred(3), "out of focus"),
    "0.5 times as bright": (_times(0.5), "stain out of range"),
    "0.7 times as bright": (_times(0.7), "stain out of range"),
    "1.25 times as bright": (_times(1.25), "stain out of range"),
    "red and green swapped": (_channels(1, 0, 2), "stain out of range"),
    "red and blue swapped": (_channels(2, 1, 0), "stain out of range"),
    "colours inverted": (_on_cell(lambda rgb: 255 - rgb.astype(np.int16)), "stain out of range"),
    "cut in half": (lambda rgb: rgb[: rgb.shape[0] // 2].copy(), "cell cut off"),
    "a quarter cut away": (lambda rgb: rgb[: rgb.shape[0] * 3 // 4].copy(), "cell cut off"),
    "two cells": (_beside_another, "several cells"),
    "covered by black": (np.zeros_like, "no cell"),
    "one colour": (_on_cell(lambda rgb: np.full_like(rgb, 180)), "blank"),
    "a quarter of its width and height": (lambda rgb: cv2.resize(rgb, None, fx=0.25, fy=0.25), "unusual size"),
}


def _moved(right: int, down: int) -> Callable[[RGB], Any]:
    matrix = np.array([[1, 0, right], [0, 1, down]], np.float32)
    return lambda rgb: cv2.warpAffine(rgb, matrix, (rgb.shape[1], rgb.shape[0]))


def _jpeg(quality: int) -> Callable[[RGB], Any]:
    def again(rgb: RGB) -> Any:
        data = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        return cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)

    return again


COPIES: dict[str, Callable[[RGB], Any]] = {
    "JPEG, quality 95": _jpeg(95),
    "JPEG, quality 70": _jpeg(70),
    "0.9 times as bright": _times(0.9),
    "1.1 times as bright": _times(1.1),
    "0.9 times as wide": lambda rgb: cv2.resize(rgb, None, fx=0.9, fy=0.9, interpolation=cv2.INTER_AREA),
    "half as wide": lambda rgb: cv2.resize(rgb, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "on 5 px more black": lambda rgb: cv2.copyMakeBorder(rgb, 5, 5, 5, 5, cv2.BORDER_CONSTANT),
    "moved by 1 px, its edge lost": _moved(1, 0),
    "moved by 1 px both ways, its edges lost": _moved(1, 1),
    "moved by 2 and 1 px, its edges lost": _moved(2, 1),
    "1 px cut off all around": lambda rgb: rgb[1:-1, 1:-1].copy(),
    "2 px cut off all around": lambda rgb: rgb[2:-2, 2:-2].copy(),
}


def _facts_of(rgb: RGB) -> ImageFacts:
    return measure(Decoded(np.ascontiguousarray(rgb), "PNG", "RGB"), size=0)


def _rates(facts: Iterable[ImageFacts], bounds: Mapping[str, tuple[float, float]]) -> tuple[Counter[str], int]:
    found, count = Counter[str](), 0
    for one in facts:
        count += 1
        reasons = {problem.reason for problem in judge_image(one, RULES, bounds)}
        found.update([*reasons, "any"] if reasons else [])
    return found, count


def false_alarms(table: pd.DataFrame, learned_from: int | None) -> dict[str, list[float]]:
    """Return the share of good cells at which each check fires, a value a draw; None: learned from themselves."""
    patients = sorted(set(table["patient"]) - {""})
    shares: dict[str, list[float]] = {}
    for draw in range(DRAWS if learned_from else 1):
        known = table["patient"].isin(random.Random(draw).sample(patients, learned_from)) if learned_from else None
        bounds = learn_bounds(table if known is None else table[known])
        unseen = table if known is None else table[~known]
        rows = unseen[list(FACT_NAMES)].itertuples(index=False, name=None)
        found, count = _rates((ImageFacts(*row) for row in rows), bounds)
        for reason in CHECKS:
            shares.setdefault(reason, []).append(found[reason] / count)
    return shares


CHECKS = (
    *("too small", "too large", "odd aspect", "no cell", "blank", "several cells", "cell cut off"),
    *("out of focus", "stain out of range", "unusual size", "any"),
)


def _report(table: pd.DataFrame, images: list[RGB]) -> dict[str, Any]:
    half = table["patient"].nunique() // 2
    alarms = {
        name: {check: {"mean": float(np.mean(v)), "worst": max(v)} for check, v in false_alarms(table, count).items()}
        for name, count in (("half of the patients", half), ("20", 20), ("8", 8), ("the images themselves", None))
    }
    bounds = learn_bounds(table)
    caught = {}
    for name, (harm, check) in HARMED.items():
        found, count = _rates((_facts_of(harm(rgb)) for rgb in images), bounds)
        caught[name] = {"check": check, "caught": found[check] / count, "any": found["any"] / count}
    recall = {}
    for name, copy in COPIES.items():
        prints = [text for rgb in images for text in (_facts_of(rgb).fingerprint, _facts_of(copy(rgb)).fingerprint)]
        pairs = {(i, j) for i, j in near_duplicates(prints) if i % 2 == 0 and j == i + 1}
        recall[name] = len(pairs) / len(images)
    alike = near_duplicates(list(table["fingerprint"]))
    return {
        "cells": len(table),
        "patients": int(table["patient"].nunique()),
        "bounds": bounds,
        "false alarms": alarms,
        "caught": caught,
        "near duplicates": {"alike": ALIKE, "pairs among the cells": len(alike), "recall": recall},
    }


def _print(report: dict[str, Any]) -> None:
    alarms = report["false alarms"]
    print(f"{report['cells']:,} cells of {report['patients']} patients\n\nfalse alarms, mean (worst of {DRAWS} draws)")
    print(f"{'check':20}" + "".join(f"{'from ' + name:>28}" for name in alarms))
    for check in CHECKS:
        cells = (f"{alarms[n][check]['mean']:.3%} ({alarms[n][check]['worst']:.2%})" for n in alarms)
        print(f"{check:20}" + "".join(f"{cell:>28}" for cell in cells))
    print(f"\n{'harmed':40}{'check':>20}{'caught':>10}{'by any':>10}")
    for name, row in report["caught"].items():
        print(f"{name:40}{row['check']:>20}{row['caught']:>10.1%}{row['any']:>10.1%}")
    near = report["near duplicates"]
    print(f"\nnear duplicates among the cells: {near['pairs among the cells']} pairs above {near['alike']}; recall:")
    for name, share in near["recall"].items():
        print(f"{name:40}{share:>10.1%}")


def main() -> None:
    """Measure all cells, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    files = sorted(given.cells.glob("*/*.png"))
    rows = [
        (patient_of(file.name, RULES.patient_pattern), *astuple(inspect(file.read_bytes(), RULES))) for file in files
    ]
    table = pd.DataFrame(rows, columns=["patient", *FACT_NAMES])
    some = random.Random(0).sample(files, min(SAMPLE, len(files)))
    report = _report(table, [decode(file.read_bytes(), RULES) for file in some])
    _print(report)
    if given.json:
        given.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
