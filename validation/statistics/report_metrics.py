"""Metrics for the report, beyond the gate's: precision, F1, MCC, calibration error, Brier score.

Intervals come from the same draws of whole patients as those of ``metrics``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from validation.records import Interval
from validation.statistics.metrics import Scored, draws, interval_of
from validation.statistics.paired_tests import Floats

# The metrics of this module, in the order of display.
EXTRA_NAMES = ("precision", "f1", "mcc", "calibration_error", "brier")
RESAMPLES = 2_000
BINS = 10


@dataclass(frozen=True)
class CalibrationBin:
    """One bin of a calibration curve: mean probability, observed share of infected cells with its interval, cells."""

    predicted: float
    observed: Interval
    cells: int


def extra_metrics(scored: Scored, *, resamples: int = RESAMPLES, level: float = 0.95) -> dict[str, Interval | None]:
    """Return precision, F1, MCC, expected calibration error and Brier score; None where a metric is undefined."""
    if not scored.count:
        return dict.fromkeys(EXTRA_NAMES)
    point = _extra(scored, np.ones((1, scored.count)))
    spread = _extra(scored, draws(scored.count, resamples))
    return {name: interval_of(float(point[name][0]), spread[name], level) for name in EXTRA_NAMES}


def _extra(scored: Scored, weights: Floats) -> dict[str, Floats]:
    """Return every metric for each row of ``weights`` [draws, patients]; NaN where it is undefined."""
    tp, positives, tn, negatives = (weights @ scored.tallies).T
    fp, fn = negatives - tn, positives - tp
    with np.errstate(invalid="ignore", divide="ignore"):
        # Without cells of a class F1 and MCC have no meaning.
        both = np.where((positives > 0) & (negatives > 0), 1.0, np.nan)
        # Matthews 1975: 0 where all cells get the same call, as in scikit-learn.
        root = np.sqrt((tp + fp) * positives * negatives * (tn + fn))
        mcc = np.where(root > 0, (tp * tn - fp * fn) / root, 0.0)
        return {
            "precision": tp / (tp + fp),
            "f1": 2 * tp / (2 * tp + fp + fn) * both,
            "mcc": mcc * both,
            "calibration_error": _calibration_error(scored, weights),
            "brier": (weights @ _by_patient(scored, (scored.probabilities - scored.labels) ** 2))
            / (weights @ _by_patient(scored, np.ones(len(scored.labels)))),
        }


def _calibration_error(scored: Scored, weights: Floats) -> Floats:
    """Expected calibration error over bins of equal mass (Nixon et al. 2019, arXiv:1904.01685, section 3.2).

    The sum over bins of the bin's share of cells times the distance of its mean probability from its observed share.
    The bins are those of all cells, the same for every draw.
    """
    total = weights @ _by_patient(scored, np.ones(len(scored.labels)))
    error = np.zeros(len(weights))
    for chosen in _equal_mass(scored.probabilities):
        gap = weights @ _by_patient(scored, np.where(chosen, scored.probabilities - scored.labels, 0.0))
        error += np.abs(gap)
    result: Floats = error / total
    return result


def calibration_curve(scored: Scored, *, resamples: int = RESAMPLES, level: float = 0.95) -> list[CalibrationBin]:
    """Return bins of equal mass, lowest first: mean probability against the observed share of infected cells."""
    if not scored.count:
        return []
    drawn, bins = draws(scored.count, resamples), []
    for chosen in _equal_mass(scored.probabilities):
        infected = _by_patient(scored, (chosen & scored.labels).astype(np.float64))
        cells = _by_patient(scored, chosen.astype(np.float64))
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = (drawn @ infected) / (drawn @ cells)
        observed = interval_of(float(infected.sum() / cells.sum()), spread, level)
        if observed is not None:
            bins.append(CalibrationBin(float(scored.probabilities[chosen].mean()), observed, int(chosen.sum())))
    return bins


def _equal_mass(probabilities: Floats) -> list[npt.NDArray[np.bool_]]:
    """Return parts of about equal size by rank of probability; equal probabilities are in the same part."""
    count = min(BINS, len(probabilities))
    edges = np.unique(np.quantile(probabilities, np.linspace(0, 1, count + 1)[1:-1])) if count > 1 else np.array([])
    place = np.searchsorted(edges, probabilities, side="left")
    return [place == index for index in np.unique(place)]


def _by_patient(scored: Scored, values: Floats) -> Floats:
    sums: Floats = np.bincount(scored.patients, weights=values, minlength=scored.count).astype(np.float64)
    return sums


def classification_text(labels: npt.NDArray[np.bool_], called: npt.NDArray[np.bool_], names: tuple[str, str]) -> str:
    """Return scikit-learn's classification report as text; ``names`` are those of False and of True."""
    from sklearn.metrics import classification_report

    text: str = classification_report(
        labels.astype(int), called.astype(int), labels=[0, 1], target_names=list(names), digits=4, zero_division=np.nan
    )
    return text.rstrip()
