"""Temperature scaling: one number that calibrates a model's probabilities."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

# Outside this range a model is useless, or was fitted on too few cells.
COLDEST, HOTTEST = 0.1, 10.0

Floats = npt.NDArray[np.floating]


def temperature_of(logits: Floats, labels: npt.NDArray[np.bool_]) -> float:
    """Return the temperature T for which ``sigmoid(logits / T)`` has the lowest cross-entropy (Guo et al. 2017).

    ``logits`` float [n], ``labels`` bool [n], True for Parasitized; cells that the model was not fitted on. The targets
    are Platt's (1999), slightly inside 0 and 1, so that a model that is right about a few cells does not become
    certain. With one class only, 1.
    """
    from scipy.optimize import minimize_scalar  # half a second, which a process that fits nothing need not spend

    positives, negatives = int(labels.sum()), int((~labels).sum())
    if not positives or not negatives:
        return 1.0
    values = logits.astype(np.float64)
    targets = np.where(labels, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    best = minimize_scalar(
        lambda x: float(np.mean(cross_entropy(values / math.exp(x), targets))),
        bounds=(math.log(COLDEST), math.log(HOTTEST)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(math.exp(best.x))


def calibrated_loss(logits: Floats, labels: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Return the mean binary cross-entropy (nats) at the best temperature, and that temperature.

    Unlike the plain loss it does not rise when a better network becomes overconfident, which the temperature in its
    model file corrects.
    """
    temperature = temperature_of(logits, labels)
    return float(np.mean(cross_entropy(logits.astype(np.float64) / temperature, labels))), temperature


def cross_entropy(logits: npt.NDArray[np.float64], targets: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return each cell's binary cross-entropy (nats), float [n]; ``targets`` [n] are probabilities, or bool."""
    losses: npt.NDArray[np.float64] = np.logaddexp(0, logits) - targets * logits
    return losses
