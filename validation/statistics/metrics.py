"""Performance metrics with patient-level intervals.

Cells of one patient share stain, focus and microscope, so they are not independent. One model's intervals are those of
validation/statistics/rates.py; two models are compared by the tests in validation/statistics/paired_tests.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from validation.records import METRIC_NAMES, Interval, Metrics, Spread
from validation.statistics.paired_tests import (
    Difference,
    Floats,
    flipped_bounds,
    mean_of,
    null_variance_bounds,
    of_shares,
)
from validation.statistics.rates import (
    effective_patients,
    jackknife_half,
    jackknife_interval,
    mean_interval,
    rate_interval,
    without_each,
)

NAMES = METRIC_NAMES
# Increase it when the same predictions get other intervals: an evaluation by another method is another evaluation.
METHOD_VERSION = 3


@dataclass(frozen=True)
class Scored:
    """One model's probabilities on a set of cells.

    ``labels`` bool [n], True for Parasitized; ``probabilities`` float [n]; ``patients`` int [n], 0 .. patients-1.
    """

    labels: npt.NDArray[np.bool_]
    probabilities: Floats
    patients: npt.NDArray[np.int64]
    threshold: float

    @cached_property
    def count(self) -> int:
        """Number of patients."""
        return int(self.patients.max()) + 1 if len(self.patients) else 0

    @cached_property
    def tallies(self) -> Floats:
        """Per patient: true positives, positives, true negatives, negatives; float [patients, 4]."""
        calls = self.probabilities >= self.threshold
        columns = (calls & self.labels, self.labels, ~calls & ~self.labels, ~self.labels)
        return np.stack([np.bincount(self.patients, weights=c, minlength=self.count) for c in columns], axis=1)

    @cached_property
    def wins(self) -> Floats:
        """``wins[i, j]``: pairs of a positive of patient i that scores above a negative of patient j, ties half.

        The sum over all pairs is the Mann-Whitney statistic: the AUC of weighted patients is a quadratic form.
        """
        wins = np.zeros((self.count, self.count))
        for i in range(self.count):
            positives = np.sort(self.probabilities[self.labels & (self.patients == i)])
            if not len(positives):
                continue
            negatives = self.probabilities[~self.labels]
            above = len(positives) - np.searchsorted(positives, negatives, side="right")
            ties = len(positives) - np.searchsorted(positives, negatives, side="left") - above
            wins[i] = np.bincount(self.patients[~self.labels], weights=above + ties / 2, minlength=self.count)
        return wins

    @cached_property
    def cells(self) -> Floats:
        """Number of cells, float [patients]."""
        total: Floats = self.tallies[:, 1] + self.tallies[:, 3]
        return total

    def auc(self, weights: Floats) -> Floats:
        """Return the AUC for each row of ``weights`` [rows, patients]; NaN where a class is missing."""
        _, positives, _, negatives = (weights @ self.tallies).T
        with np.errstate(invalid="ignore", divide="ignore"):
            wins: Floats = np.einsum("bi,ij,bj->b", weights, self.wins, weights, optimize=True)
            auc: Floats = wins / (positives * negatives)
        return auc


def summarise(scored: Scored, *, level: float = 0.95) -> Metrics:
    """Return all metrics of one model with two-sided intervals (docs/gate.md); None where a metric is undefined."""
    intervals: dict[str, Interval | None] = dict.fromkeys(NAMES)
    tp, positives, tn, negatives = scored.tallies.T if scored.count else np.zeros((4, 0))
    if scored.count:
        sensitivity, specificity = rate_interval(tp, positives, level), rate_interval(tn, negatives, level)
        auc, without = float(scored.auc(np.ones((1, scored.count)))[0]), scored.auc(without_each(scored.count))
        intervals = {
            "accuracy": rate_interval(tp + tn, positives + negatives, level),
            "balanced_accuracy": mean_interval(sensitivity, specificity),
            "auc": jackknife_interval(auc, without, scored.cells, level),
            "sensitivity": sensitivity,
            "specificity": specificity,
        }
    return Metrics(
        cells=len(scored.labels),
        patients=scored.count,
        threshold=scored.threshold,
        tp=int(tp.sum()),
        fn=int((positives - tp).sum()),
        tn=int(tn.sum()),
        fp=int((negatives - tn).sum()),
        log_loss=log_loss(scored) if len(scored.labels) else None,
        **intervals,
    )


def log_loss(scored: Scored) -> float:
    """Return the mean binary cross-entropy in nats."""
    p = np.clip(scored.probabilities, 1e-7, 1 - 1e-7)
    return float(-np.where(scored.labels, np.log(p), np.log1p(-p)).mean())


def compare(challenger: Scored, champion: Scored, *, resamples: int, level: float) -> dict[str, Interval]:
    """Return challenger minus champion for every metric, paired by patient.

    ``level`` is the one-sided level of both bounds. Accuracies by sign flips (``resamples`` of them), sensitivity and
    specificity by the variance under the bound (paired_tests); the AUC, which no gate compares, by leaving out each
    patient. An undefined metric is left out.
    """
    intervals = {}
    for name, difference in differences(challenger, champion).items():
        if name in ("sensitivity", "specificity"):
            low, high = null_variance_bounds(difference, level=level)
        else:
            low, high = flipped_bounds(difference, flips=resamples, level=level)
        intervals[name] = Interval(value=difference.value, low=low, high=high, level=1 - 2 * level)
    if "balanced_accuracy" in intervals:
        intervals["auc"] = _auc_difference(challenger, champion, level)
    return {name: intervals[name] for name in NAMES if name in intervals}


def differences(challenger: Scored, champion: Scored) -> dict[str, Difference]:
    """Return challenger minus champion by patient, for every metric that is a share of cells and is defined."""
    if not challenger.count:
        return {}
    _, positives, _, negatives = challenger.tallies.T
    more_tp, _, more_tn, _ = (challenger.tallies - champion.tallies).T
    sensitivity, specificity = of_shares(more_tp, positives), of_shares(more_tn, negatives)
    by_name = {
        "accuracy": of_shares(more_tp + more_tn, positives + negatives),
        "balanced_accuracy": mean_of(sensitivity, specificity, (positives > 0, negatives > 0)),
        "sensitivity": sensitivity,
        "specificity": specificity,
    }
    return {name: difference for name, difference in by_name.items() if difference is not None}


def spreads(challenger: Scored, champion: Scored) -> dict[str, Spread]:
    """Return the spread of each difference, for estimates of further patients and of the detectable difference.

    That of sensitivity and specificity includes what their test adds for what is not seen. Accuracies of models that
    agree on every cell show no variance: it is then assumed to be that of one cell of each class called differently, in
    two patients.
    """
    _, positives, _, negatives = (float(x) for x in challenger.tallies.sum(axis=0)) if challenger.count else (0.0,) * 4
    least = {
        "accuracy": 1 / max(1, positives + negatives),
        "balanced_accuracy": math.hypot(1 / max(1, positives), 1 / max(1, negatives)) / 2,
    }
    by_name = differences(challenger, champion)
    errors = {
        name: max(difference.error, least[name]) if name in least else difference.error_with_unseen
        for name, difference in by_name.items()
    }
    return {
        name: Spread(error=errors[name], effective_patients=difference.effective)
        for name, difference in by_name.items()
        if math.isfinite(errors[name])
    }


def _auc_difference(challenger: Scored, champion: Scored, level: float) -> Interval:
    ones, without = np.ones((1, challenger.count)), without_each(challenger.count)
    value = float((challenger.auc(ones) - champion.auc(ones))[0])
    freedom = effective_patients(challenger.cells) - 1
    half = jackknife_half(challenger.auc(without) - champion.auc(without), freedom, 1 - 2 * level)
    return Interval(value=value, low=max(-1.0, value - half), high=min(1.0, value + half), level=1 - 2 * level)
