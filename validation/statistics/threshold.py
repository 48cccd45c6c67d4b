"""The threshold of a model: frozen on the tuning patients, before anything is judged."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from validation.statistics.paired_tests import SEED, Floats

# Enough for a standard error to about a twentieth of itself.
RESAMPLES = 200


def choose_threshold(
    labels: npt.NDArray[np.bool_],
    probabilities: Floats,
    patients: npt.NDArray[np.int64],
    *,
    prevalence: float,
    target_sensitivity: float | None = None,
) -> float:
    """Return the threshold with the best expected balanced accuracy on other patients.

    For calibrated probabilities it is the share of infected cells in training (Bayes' rule, errors weighted by class).
    The best threshold on a few tuning patients (Youden's J) is mostly noise, so it must be clearly better: of all
    thresholds within one standard error of the best, the one nearest to ``prevalence`` is returned (one-standard-error
    rule, Breiman et al. 1984, CART, section 3.4.3; the error is that of the difference to the best, over draws of whole
    patients). It is in the middle between two scores.

    With ``target_sensitivity`` it is the best, by balanced accuracy, of those that find at least this share of the
    infected cells. With one class only it is 0.5.

    Args:
        labels: bool [n], True for Parasitized.
        probabilities: float [n].
        patients: int [n], 0 .. patients-1.
        prevalence: share of infected cells in training, 0 .. 1.
        target_sensitivity: 0 .. 1.
    """
    if labels.all() or not labels.any():
        return 0.5
    order = np.argsort(probabilities, kind="stable")
    scores, truth, codes = probabilities[order], labels[order], patients[order]
    sensitivity, specificity = _rates(truth, np.ones(len(truth)))
    middle = (scores[1:] + scores[:-1]) / 2
    # The middle of two adjacent floats rounds to one of them; only the upper one separates them.
    edges = np.concatenate([[0.0], np.where(middle > scores[:-1], middle, scores[1:]), [1.0]])
    # No threshold separates equal scores, or is above a score of 1.
    possible = np.concatenate([[True], scores[1:] > scores[:-1], [scores[-1] < 1]])
    if target_sensitivity is not None:
        # Position 0 calls every cell positive, so at least one is left.
        possible &= sensitivity >= target_sensitivity - 1e-12
    balanced = np.where(possible, (sensitivity + specificity) / 2, -1)
    equal = np.flatnonzero(balanced >= balanced.max() - 1e-12)
    best = int(equal[len(equal) // 2])
    if target_sensitivity is not None:
        return float(edges[best])
    error = _errors_of_difference(truth, codes, best)
    near = np.flatnonzero(possible & (balanced >= balanced[best] - error - 1e-12))
    # Calls are the same anywhere between two scores, so the distance is to the whole gap.
    low, high = np.concatenate([[0.0], scores])[near], np.concatenate([scores, [1.0]])[near]
    distance = np.maximum(0, np.maximum(low - prevalence, prevalence - high))
    return float(edges[near[np.lexsort([np.abs(edges[near] - prevalence), distance])[0]]])


def _rates(truth: npt.NDArray[np.bool_], weights: Floats) -> tuple[Floats, Floats]:
    """Return sensitivity and specificity, float [n + 1], of calling all from position k on infected."""
    infected, healthy = np.cumsum(weights * truth), np.cumsum(weights * ~truth)
    return 1 - np.concatenate([[0], infected]) / infected[-1], np.concatenate([[0], healthy]) / healthy[-1]


def _errors_of_difference(truth: npt.NDArray[np.bool_], patients: npt.NDArray[np.int64], best: int) -> Floats:
    """Return the standard error, float [n + 1], of each position's balanced accuracy minus that of ``best``."""
    total, squares, count = np.zeros(len(truth) + 1), np.zeros(len(truth) + 1), 0
    for drawn in draws(int(patients.max()) + 1, RESAMPLES):
        weights = drawn[patients]
        if not weights[truth].any() or not weights[~truth].any():
            continue  # undefined without one of the classes
        sensitivity, specificity = _rates(truth, weights)
        balanced = (sensitivity + specificity) / 2
        difference = balanced - balanced[best]
        total += difference
        squares += difference**2
        count += 1
    if not count:
        return total
    return np.sqrt(np.maximum(0, squares / count - (total / count) ** 2))


def draws(patients: int, resamples: int) -> Floats:
    """Return each patient's count in each draw: float [resamples, patients]; the rows sum to ``patients``."""
    rng = np.random.default_rng(SEED)
    return rng.multinomial(patients, np.full(patients, 1 / patients), size=resamples).astype(np.float64)
