"""Metrics for the report, beyond the gate's: precision, F1, MCC, calibration error, Brier score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from validation.records import Interval
from validation.statistics.metrics import Scored
from validation.statistics.paired_tests import Floats
from validation.statistics.rates import jackknife_interval, rate_interval, without_each

# The metrics of this module, in the order of display.
EXTRA_NAMES = ("precision", "f1", "mcc", "brier")
BINS = 10


@dataclass(frozen=True)
class CalibrationBin:
    """One bin of a calibration curve: mean probability, observed share of infected cells with its interval, cells."""

    predicted: float
    observed: Interval
    cells: int


def extra_metrics(scored: Scored, *, level: float = 0.95) -> dict[str, Interval | None]:
    """Return precision, F1, MCC and Brier score with intervals by leaving out each patient; None where undefined."""
    if not scored.count:
        return dict.fromkeys(EXTRA_NAMES)
    point, without = _extra(scored, np.ones((1, scored.count))), _extra(scored, without_each(scored.count))
    return {
        name: jackknife_interval(
            float(point[name][0]), without[name], scored.cells, level, lowest=-1.0 if name == "mcc" else 0.0
        )
        for name in EXTRA_NAMES
    }


def _extra(scored: Scored, weights: Floats) -> dict[str, Floats]:
    """Return every metric for each row of ``weights`` [rows, patients]; NaN where it is undefined."""
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
            "brier": (weights @ _by_patient(scored, (scored.probabilities - scored.labels) ** 2))
            / (weights @ _by_patient(scored, np.ones(len(scored.labels)))),
        }


def sensitivity_at(scored: Scored, specificity: float) -> float | None:
    """Return the sensitivity at the lowest threshold that reaches ``specificity``; None where a class has no cells.

    It has no interval: the threshold is chosen on these very cells, and rests on the few highest uninfected ones.
    """
    infected, clear = scored.probabilities[scored.labels], np.sort(scored.probabilities[~scored.labels])[::-1]
    if not len(infected) or not len(clear):
        return None
    # Rounded, since 1 - 0.99 is a little more or less than a hundredth.
    return float((infected > clear[int(len(clear) * (1 - specificity) + 1e-9)]).mean())


def calibration_error(scored: Scored) -> float | None:
    """Return the expected calibration error over bins of equal mass (Nixon et al. 2019, arXiv:1904.01685, section 3.2).

    The sum over bins of the bin's share of cells times the distance of its mean probability from its observed share. It
    has no interval: chance alone makes it larger than it is, the more so with fewer patients, and no interval covered.
    """
    if not scored.count:
        return None
    gap = scored.probabilities - scored.labels
    return float(sum(abs(gap[chosen].sum()) for chosen in _equal_mass(scored.probabilities)) / len(gap))


def calibration_curve(scored: Scored, *, level: float = 0.95) -> list[CalibrationBin]:
    """Return bins of equal mass, lowest first: mean probability against the observed share of infected cells."""
    bins = []
    for chosen in _equal_mass(scored.probabilities) if scored.count else []:
        infected, cells = (_by_patient(scored, w.astype(np.float64)) for w in (chosen & scored.labels, chosen))
        observed = rate_interval(infected, cells, level)
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
