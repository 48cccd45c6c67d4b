"""How often the two-sided 95% intervals of one model hold the truth, and how wide they are.

    python -m benchmarks.coverage [--sets 400] [--patients 20 40 80 140]

Rates over patients drawn as equal trainings call real cells (and four times as many of them), and over made-up ones;
what needs scores over made-up patients whose scores are normal by cell and by patient (benchmarks/populations.py). The
differences of two AUCs are those of two models whose scores differ by noise of patients and of cells.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import expit

from benchmarks.populations import RandomCalls, equal_models, simulated
from validation.records import Interval
from validation.statistics.metrics import Scored, compare, summarise
from validation.statistics.rates import rate_interval
from validation.statistics.report_metrics import extra_metrics

POPULATION = 1_500
Found = Iterator[tuple[str, Interval, float]]


class Rates:
    """Sensitivity and specificity of one model on many sets of patients."""

    def __init__(self, models: RandomCalls) -> None:
        self.name, self.models = models.name, models

    def draw(self, rng: np.random.Generator, patients: int) -> Found:
        """Return the name, the interval and the truth of each metric on one set of patients."""
        who = rng.integers(0, self.models.cells.shape[1], patients)
        right, sizes = self.models.calls(rng, who, (0.0, 0.0)), self.models.cells.sum(axis=2)
        for side, name in enumerate(("sensitivity", "specificity")):
            found = rate_interval(right[side].astype(float), sizes[side][who].astype(float), 0.95)
            if found is not None:
                yield name, found, self._truth[side]

    @cached_property
    def _truth(self) -> tuple[float, float]:
        return self.models.truth((0.0, 0.0))


class Scores:
    """Two models' scores on made-up patients; a set is drawn from them with replacement, so the truth is known."""

    def __init__(self, name: str, seed: int = 3) -> None:
        rng, self.name = np.random.default_rng(seed), name
        cells = simulated(POPULATION, seed).cells.sum(axis=2)
        labels = np.repeat([True, False], cells.sum(axis=1))
        patient = np.repeat(np.tile(np.arange(POPULATION), 2), cells.ravel())
        effect = rng.normal(0, 1, (2, POPULATION))[labels.astype(int), patient]
        middle = np.where(labels, 3.6, -4.2) + np.where(labels, 0.9, 0.7) * effect
        hard = rng.random(len(labels)) < 0.03
        middle = middle + rng.normal(0, 1.6, len(labels)) - np.sign(middle) * hard * rng.exponential(5, len(labels))
        self.models = []
        for _ in range(2):
            other = 0.5 * rng.normal(0, 1, POPULATION)[patient] + rng.normal(0, 0.7, len(labels))
            self.models.append(Scored(labels, expit(middle + other), patient.astype(np.int64), 0.5))
        order = np.argsort(patient, kind="stable")
        self.rows = np.split(order, np.cumsum(np.bincount(patient, minlength=POPULATION))[:-1])

    def draw(self, rng: np.random.Generator, patients: int) -> Found:
        """Return the name, the interval and the truth of each metric on one set of patients."""
        chosen = [self.rows[who] for who in rng.integers(0, POPULATION, patients)]
        rows, owner = np.concatenate(chosen), np.repeat(np.arange(patients), [len(r) for r in chosen])
        new, old = (Scored(m.labels[rows], m.probabilities[rows], owner, m.threshold) for m in self.models)
        found = {**summarise(new).intervals(), **extra_metrics(new)}
        found["difference of AUC"] = compare(new, old, resamples=1_000, level=0.025)["auc"]
        for name, interval in found.items():
            if interval is not None:
                yield name, interval, self._truth[name]

    @cached_property
    def _truth(self) -> dict[str, float]:
        one, other = self.models
        values = summarise_values(one)
        values["difference of AUC"] = values["auc"] - summarise_values(other)["auc"]
        return values


def summarise_values(scored: Scored) -> dict[str, float]:
    """Return the values of all metrics, by scikit-learn: the population's are the truth."""
    from sklearn import metrics as m

    called, p = scored.probabilities >= scored.threshold, scored.probabilities
    return {
        "accuracy": m.accuracy_score(scored.labels, called),
        "balanced_accuracy": m.balanced_accuracy_score(scored.labels, called),
        "auc": m.roc_auc_score(scored.labels, p),
        "sensitivity": m.recall_score(scored.labels, called),
        "specificity": m.recall_score(~scored.labels, ~called),
        "precision": m.precision_score(scored.labels, called),
        "f1": m.f1_score(scored.labels, called),
        "mcc": m.matthews_corrcoef(scored.labels, called),
        "brier": m.brier_score_loss(scored.labels, p),
    }


def table(sets: int, patients: list[int]) -> str:
    """Return what is printed: Markdown; coverage in % (mean width in points)."""
    real = equal_models()
    big = replace(real, cells=real.cells * 4, name="real cells, four times as many")
    out = [
        "| patients are | metric | " + " | ".join(str(n) for n in patients) + " |",
        "|---|---|" + "---|" * len(patients),
    ]
    for source in (Rates(real), Rates(big), Rates(simulated()), Scores("simulated scores")):
        held: dict[str, dict[int, list[tuple[bool, float]]]] = {}
        for count in patients:
            rng: Any = np.random.default_rng(count)
            for _ in range(sets):
                for name, interval, truth in source.draw(rng, count):
                    width = 100 * (interval.high - interval.low)
                    held.setdefault(name, {}).setdefault(count, []).append(
                        (interval.low <= truth <= interval.high, width)
                    )
        for name, by_count in held.items():
            cells = (np.mean(by_count[count], axis=0) for count in patients)
            shown = " | ".join(f"{100 * share:.1f} ({width:.1f})" for share, width in cells)
            out.append(f"| {source.name} | {name.replace('_', ' ')} | {shown} |")
    return "\n".join(out)


def main() -> None:
    """Measure over all kinds of patients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=400)
    parser.add_argument("--patients", type=int, nargs="+", default=[20, 40, 80, 140])
    asked = parser.parse_args()
    print(table(asked.sets, asked.patients))


if __name__ == "__main__":
    main()
