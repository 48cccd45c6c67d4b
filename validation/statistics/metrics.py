"""Performance metrics with patient-level intervals.

Cells of one patient share stain, focus and microscope, so they are not independent. One model's intervals come from a
cluster bootstrap: whole patients are drawn with replacement (Field & Welsh 2007, JRSS B 69:369), and the bounds are
widened for few patients. Two models are compared by the tests in validation/statistics/paired_tests.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri, stdtrit

from validation.records import METRIC_NAMES, Interval, Metrics, Spread
from validation.statistics.paired_tests import (
    SEED,
    Difference,
    Floats,
    flipped_bounds,
    mean_of,
    null_variance_bounds,
    of_shares,
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

        The sum over all pairs is the Mann-Whitney statistic: the AUC of a draw of patients is a quadratic form.
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

    def metrics(self, weights: Floats) -> dict[str, Floats]:
        """Return every metric for each row of ``weights`` [draws, patients]; NaN where a class is missing."""
        tp, positives, tn, negatives = (weights @ self.tallies).T
        with np.errstate(invalid="ignore", divide="ignore"):
            sensitivity, specificity = tp / positives, tn / negatives
            return {
                "accuracy": (tp + tn) / (positives + negatives),
                "balanced_accuracy": (sensitivity + specificity) / 2,
                "auc": self.auc(weights),
                "sensitivity": sensitivity,
                "specificity": specificity,
            }

    def auc(self, weights: Floats) -> Floats:
        """Return the AUC for each row of ``weights`` [draws, patients]; NaN where a class is missing."""
        _, positives, _, negatives = (weights @ self.tallies).T
        with np.errstate(invalid="ignore", divide="ignore"):
            wins: Floats = np.einsum("bi,ij,bj->b", weights, self.wins, weights, optimize=True)
            auc: Floats = wins / (positives * negatives)
        return auc


def draws(patients: int, resamples: int) -> Floats:
    """Return each patient's count in each draw: float [resamples, patients]; the rows sum to ``patients``."""
    rng = np.random.default_rng(SEED)
    return rng.multinomial(patients, np.full(patients, 1 / patients), size=resamples).astype(np.float64)


def summarise(scored: Scored, *, resamples: int, level: float = 0.95) -> Metrics:
    """Return all metrics of one model; None where a metric is undefined.

    Two-sided percentile intervals, widened by ``few_patients`` for better coverage (docs/gate.md).
    """
    intervals: dict[str, Interval | None] = dict.fromkeys(NAMES)
    if scored.count:
        point = scored.metrics(np.ones((1, scored.count)))
        spread = scored.metrics(draws(scored.count, resamples))
        plain = {name: interval_of(point[name][0], spread[name], level) for name in NAMES}
        factor = few_patients(scored.count, (1 - level) / 2)
        intervals = {name: interval and _widened(interval, factor, (0.0, 1.0)) for name, interval in plain.items()}
    tp, positives, tn, negatives = (int(x) for x in scored.tallies.sum(axis=0)) if scored.count else (0, 0, 0, 0)
    return Metrics(
        cells=len(scored.labels),
        patients=scored.count,
        threshold=scored.threshold,
        tp=tp,
        fn=positives - tp,
        tn=tn,
        fp=negatives - tn,
        log_loss=log_loss(scored) if len(scored.labels) else None,
        **intervals,
    )


def log_loss(scored: Scored) -> float:
    """Return the mean binary cross-entropy in nats."""
    p = np.clip(scored.probabilities, 1e-7, 1 - 1e-7)
    return float(-np.where(scored.labels, np.log(p), np.log1p(-p)).mean())


def compare(challenger: Scored, champion: Scored, *, resamples: int, level: float) -> dict[str, Interval]:
    """Return challenger minus champion for every metric, paired by patient.

    ``level`` is the one-sided level of both bounds. Accuracies by sign flips, sensitivity and specificity by the
    variance under the bound (paired_tests); the AUC, which no gate compares, by the bootstrap of both models on the
    same draws, widened by ``few_patients``. An undefined metric is left out.
    """
    intervals = {}
    for name, difference in differences(challenger, champion).items():
        if name in ("sensitivity", "specificity"):
            low, high = null_variance_bounds(difference, level=level)
        else:
            low, high = flipped_bounds(difference, flips=resamples, level=level)
        intervals[name] = Interval(value=difference.value, low=low, high=high, level=1 - 2 * level)
    if "balanced_accuracy" in intervals:
        intervals["auc"] = _auc_difference(challenger, champion, resamples, level)
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


def _auc_difference(challenger: Scored, champion: Scored, resamples: int, level: float) -> Interval:
    ones, drawn = np.ones((1, challenger.count)), draws(challenger.count, resamples)
    value = float((challenger.auc(ones) - champion.auc(ones))[0])
    interval = interval_of(value, challenger.auc(drawn) - champion.auc(drawn), 1 - 2 * level)
    if interval is None:
        raise ValueError("the AUC is undefined although there are cells of both classes")
    return _widened(interval, few_patients(challenger.count, level), (-1.0, 1.0))


def few_patients(patients: int, level: float) -> float:
    """Return the factor by which a percentile interval over few patients must be widened at a one-sided ``level``.

    ``sqrt(n / (n - 1)) * t(level, n - 1) / z(level)``: the bootstrap divides by n instead of n - 1, and uses the
    normal's tail instead of Student's (Hesterberg 2015, Am. Stat. 69:371, section 4.2). With two equal models and 20
    patients, the share of lower bounds above 0 at level 0.0021 fell from 0.0055 to 0.002 in 1,500 simulated looks.
    """
    if patients < 2:
        return float("inf")
    return math.sqrt(patients / (patients - 1)) * float(stdtrit(patients - 1, level)) / float(ndtri(level))


def _widened(interval: Interval, factor: float, limits: tuple[float, float]) -> Interval:
    """Move both bounds away from the value, within the limits of the metric."""

    def moved(bound: float, limit: float) -> float:
        far = interval.value + (bound - interval.value) * factor if math.isfinite(factor) else limit
        return max(limits[0], min(limits[1], far))

    return interval.model_copy(update={"low": moved(interval.low, limits[0]), "high": moved(interval.high, limits[1])})


def interval_of(value: float, spread: Floats, level: float) -> Interval | None:
    """Return a value and its percentile interval; None where it is undefined, or in every draw."""
    if np.isnan(value) or np.isnan(spread).all():
        return None
    # A metric is undefined in a draw without patients of a class.
    low, high = np.nanquantile(spread, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=float(value), low=float(low), high=float(high), level=level)
