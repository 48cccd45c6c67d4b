"""The epoch whose weights are kept: the last that is not significantly worse than the best on the tuning patients.

NumPy only, for both CNNs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks.models import TrainingData
from validation.statistics.calibration import cross_entropy, temperature_of

# Standard errors by which an epoch has to be worse: one in forty is by chance.
SIGNIFICANT = 2.0

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class EpochComparison:
    """An epoch on the tuning cells: loss (nats) at its best temperature, accuracy at 0.5, whether it is kept."""

    loss: float
    temperature: float
    accuracy: float
    is_kept: bool


class Selection:
    """Compares each epoch with the best so far.

    The rate falls until the end of the schedule, and with it the error on unseen patients: the later epoch is better
    unless the tuning patients contradict significantly. The lowest loss is not a criterion: one patient with wrong
    labels is enough to make it rise from the second epoch on (docs/training.md).
    """

    def __init__(self, data: TrainingData) -> None:
        self._labels = data.tuning_labels > 0.5
        cells = np.arange(len(self._labels))
        self._patients = cells if data.tuning_patients is None else data.tuning_patients
        # Each cell's loss after the epoch with the lowest mean; empty before the first.
        self.lowest: Floats = np.empty(0)

    def judge(self, logits: npt.NDArray[np.floating]) -> EpochComparison:
        """Judge the epoch that has just ended by its logits, float [n]; idempotent."""
        temperature = temperature_of(logits, self._labels)
        losses = cross_entropy(logits.astype(np.float64) / temperature, self._labels)
        if not len(self.lowest) or losses.mean() < self.lowest.mean():
            self.lowest = losses
        return EpochComparison(
            float(losses.mean()),
            temperature,
            float(np.mean((logits > 0) == self._labels)),
            not is_significantly_higher(losses, self.lowest, self._patients),
        )


def is_significantly_higher(losses: Floats, others: Floats, patients: npt.NDArray[np.integer]) -> bool:
    """Return whether the mean of ``losses``, float [n], is above that of ``others`` by more than two standard errors.

    It is the standard error of the mean difference over cells when ``patients``, int [n], are sampled: of a ratio of
    sums over patients (Cochran 1977, Sampling Techniques, chapter 6). With one patient nothing is significant.
    """
    _, codes, cells = np.unique(patients, return_inverse=True, return_counts=True)
    count = len(cells)
    if count < 2:
        return False
    difference = losses - others
    mean = difference.mean()
    beyond = np.bincount(codes, difference) - cells * mean
    error = np.sqrt(count / (count - 1) * (beyond**2).sum()) / len(losses)
    return bool(mean > SIGNIFICANT * error)
