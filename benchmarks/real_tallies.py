"""Make real_tallies.json: how ten equal trainings and one other model call real cells, as counts by patient.

    python -m benchmarks.real_tallies FOLDER     # FOLDER/<Class>/<name>.png, the public set or a part of it

Models that train in seconds stand in for the CNNs: boosted trees (ten times, each on another four fifths of the
training patients) and a logistic regression, on colour and texture of each cell, five-fold by patient. Nothing of a
cell is kept but whether it was called right; patients are numbers. About a minute and a half on one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.optimize import minimize
from scipy.special import betaln
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.populations import GAINS, TALLIES
from validation.patients import patient_of
from validation.records import CLASSES, POSITIVE
from validation.rules import DEFAULT_PATIENT_PATTERN

MODELS = 10
FOLDS = 5
QUANTILES = (0.5, 1, 2, 5, 10, 25, 50, 75, 90, 95, 98, 99, 99.5)
# How much a model's effect on a patient varies, on the logit scale: set so that simulated pairs of models differ as
# unevenly between patients as the real ones do. Sum of squared differences by patient over discordant cells: 2.8
# simulated, 2.7 real for sensitivity; 2.5 and 4.2 for specificity, where more would make models disagree too often.
SPREADS = {"positive": 1.3, "negative": 1.6}


def features(path: Path) -> Any:
    """Return what is measured on one cell: size, colours, how much of it is dark, how steep its edges are."""
    image = Image.open(path).convert("RGB")
    rgb = np.asarray(image, float)
    hsv = np.asarray(image.convert("HSV"), float)
    cell = rgb.sum(axis=2) > 30
    values = [cell.sum(), rgb.shape[0] / rgb.shape[1]]
    for channel in (*np.moveaxis(rgb, 2, 0), *np.moveaxis(hsv, 2, 0)):
        values += [channel[cell].mean(), channel[cell].std(), *np.percentile(channel[cell], QUANTILES)]
    green = rgb[..., 1]
    middle = np.median(green[cell])
    values += [(green[cell] < middle * share).mean() for share in (0.75, 0.6)]
    steep = np.hypot(*np.gradient(green))[cell]
    return np.array([*values, *np.percentile(steep, [50, 75, 90, 95, 98])], np.float32)


def load(folder: Path) -> tuple[Any, Any, Any]:
    """Return features [cells, n], labels bool [cells] and the number of each cell's patient."""
    found = [(path, label) for label in CLASSES for path in sorted((folder / label).glob("*.png"))]
    patients = [patient_of(path.name, DEFAULT_PATIENT_PATTERN) or "" for path, _ in found]
    numbers = np.unique(patients, return_inverse=True)[1]
    return np.stack([features(path) for path, _ in found]), np.array([c == POSITIVE for _, c in found]), numbers


def out_of_fold(make: Any, x: Any, labels: Any, patients: Any, seed: int) -> Any:
    """Return each cell's probability by a model that has not seen its patient."""
    fold = np.random.default_rng(0).permutation(np.arange(patients.max() + 1) % FOLDS)[patients]
    rng, scores = np.random.default_rng(seed), np.zeros(len(labels))
    for number in range(FOLDS):
        there = np.unique(patients[fold != number])
        used = np.isin(patients, rng.choice(there, int(0.8 * len(there)), replace=False))
        model = make(seed).fit(x[used], labels[used])
        scores[fold == number] = model.predict_proba(x[fold == number])[:, 1]
    return scores


def matched(scores: Any, labels: Any, rights: tuple[int, int]) -> Any:
    """Return which cells are called right when each class's threshold is moved until exactly so many are."""
    right = np.zeros(len(labels), bool)
    for side, sign, count in ((labels, -1, rights[0]), (~labels, 1, rights[1])):
        cells = np.flatnonzero(side)
        right[cells[np.argsort(sign * scores[cells], kind="stable")][:count]] = True
    return right


def chances(kinds: Any) -> list[float]:
    """Return the chance that a model is right on a cell that k of n were right on: a beta-binomial's posterior mean."""
    n = len(kinds) - 1
    k = np.arange(n + 1)

    def loss(logs: Any) -> float:
        a, b = np.exp(logs)
        return float(-(kinds * (betaln(k + a, n - k + b) - betaln(a, b))).sum())

    a, b = np.exp(minimize(loss, [-1, -3], method="Nelder-Mead").x)
    return [round(float(c), 4) for c in (k + a) / (n + a + b)]


def summarise(scores: list[Any], other: Any, labels: Any, patients: Any) -> dict[str, Any]:
    """Return the tallies."""
    count = patients.max() + 1

    def by_patient(which: Any) -> list[int]:
        return [int(n) for n in np.bincount(patients[which], minlength=count)]

    champion = np.where(labels, scores[0] >= 0.5, scores[0] < 0.5)
    totals = np.array([labels.sum(), (~labels).sum()])
    base = np.array([(champion & labels).sum(), (champion & ~labels).sum()])
    pairs: dict[str, Any] = {}
    for name, challenger in (("same recipe", scores[1]), ("other recipe", other)):
        calls = {"champion": champion}
        for case, gains in GAINS.items():
            rights = np.minimum(base + np.round(np.array(gains) * totals).astype(int), totals)
            calls[case] = matched(challenger, labels, (int(rights[0]), int(rights[1])))
        pairs[name] = {c: {"tp": by_patient(r & labels), "tn": by_patient(r & ~labels)} for c, r in calls.items()}
    agreement = np.sum([np.where(labels, s >= 0.5, s < 0.5) for s in scores], axis=0)
    sides = {}
    for side, which in (("positive", labels), ("negative", ~labels)):
        cells = [np.bincount(agreement[which & (patients == p)], minlength=MODELS + 1) for p in range(count)]
        sides[side] = {
            "cells": [[int(n) for n in row] for row in cells],
            "chances": chances(np.sum(cells, axis=0)),
            "spread": SPREADS[side],
        }
    return {
        "positives": by_patient(labels), "negatives": by_patient(~labels), "pairs": pairs, "agreement": sides,
    }  # fmt: skip


def main() -> None:
    """Measure, train, count, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, default=TALLIES)
    asked = parser.parse_args()
    x, labels, patients = load(asked.folder)

    def trees(seed: int) -> Any:
        return HistGradientBoostingClassifier(
            max_iter=150, learning_rate=0.08, max_leaf_nodes=15, max_features=0.3, random_state=seed
        )

    def linear(_: int) -> Any:
        return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))

    scores = [out_of_fold(trees, x, labels, patients, seed) for seed in range(MODELS)]
    other = out_of_fold(linear, x, labels, patients, 0)
    for name, found in (("trees", scores[0]), ("logistic", other)):
        sensitivity, specificity = (found[labels] >= 0.5).mean(), (found[~labels] < 0.5).mean()
        print(f"{name}: sensitivity {sensitivity:.3f}, specificity {specificity:.3f}, {patients.max() + 1} patients")
    asked.output.write_text(json.dumps(summarise(scores, other, labels, patients)) + "\n")


if __name__ == "__main__":
    main()
