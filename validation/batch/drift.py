"""How much tonight's images differ from the champion's training images, by a measure that does not grow with the batch.

A significance test rejects on any large batch. This is an effect size between patients: Glass's delta on one value per
patient, reduced by its own error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import ndtri

from validation.records import POSITIVE

Floats = npt.NDArray[np.float64]

# Displayed name -> fact; the share of Parasitized comes from the labels.
FACTS = {
    "hue": "hue",
    "saturation": "saturation",
    "brightness": "brightness",
    "focus": "focus",
    "cell size": "cell_pixels",
}
LABEL_SHARE = "the share of Parasitized"
# Of the interval whose end nearer to 0 is reported.
CONFIDENCE = 0.95


def drift(tonight: pd.DataFrame, reference: pd.DataFrame) -> dict[str, float]:
    """Return, by name, the standard deviations between patients by which tonight differs with confidence; 0 for none.

    Both tables have one row per image (``patient``, ``label``, and facts). Images without a patient are ignored. A
    fact that either table lacks, or that fewer than three patients of the reference have, is not compared.
    """
    tonight, reference = (table[table["patient"] != ""] for table in (tonight, reference))
    deltas = {LABEL_SHARE: sure_delta(_positive_share(tonight), _positive_share(reference))}
    for name, column in FACTS.items():
        if column in tonight and column in reference:
            new, old = _by_patient(tonight, column), _by_patient(reference, column)
            if column == "hue":
                new, old = _unrolled(new, old)
            deltas[name] = sure_delta(new, old)
    return {name: delta for name in (*FACTS, LABEL_SHARE) if (delta := deltas.get(name)) is not None}


def sure_delta(new: Floats, reference: Floats) -> float | None:
    """Return Glass's delta of ``new`` against ``reference``, one value per patient, moved towards 0 by its own error.

    ``delta = (mean(new) - mean(reference)) / sd(reference)`` with variance ``1/n + 1/m + delta^2 / (2 (m - 1))``
    (Hedges & Olkin 1985, Statistical Methods for Meta-Analysis, ch. 5). Returned is the end of its two-sided interval
    that is nearer to 0, or 0 when the interval contains 0; None without a new patient, with fewer than three in the
    reference, or a reference without any spread.
    """
    if len(new) == 0 or len(reference) < 3 or not (spread := float(np.std(reference, ddof=1))):
        return None
    delta = float(np.mean(new) - np.mean(reference)) / spread
    variance = 1 / len(new) + 1 / len(reference) + delta**2 / (2 * (len(reference) - 1))
    nearer = abs(delta) - float(ndtri((1 + CONFIDENCE) / 2)) * math.sqrt(variance)
    return math.copysign(max(0.0, nearer), delta)


def expectations(deltas: Mapping[str, float]) -> dict[str, float]:
    """Return the size of each drift, by the name of its check."""
    return {f"tonight: drift of {name}": abs(value) for name, value in deltas.items()}


def _by_patient(table: pd.DataFrame, column: str) -> Floats:
    """Return each patient's median; of hue (degrees) the circular mean."""
    of_patient = table.groupby("patient")[column]
    values = of_patient.agg(_mean_angle) if column == "hue" else of_patient.median()
    return np.asarray(values, dtype=np.float64)


def _mean_angle(degrees: Any) -> float:
    return float(np.degrees(np.angle(np.exp(1j * np.radians(degrees)).mean())) % 360)


def _unrolled(new: Floats, reference: Floats) -> tuple[Floats, Floats]:
    """Return angles (degrees) as distances from the reference's circular mean, so that 359 and 1 are near."""
    centre = _mean_angle(reference) if len(reference) else 0.0
    return (new - centre + 180) % 360 - 180, (reference - centre + 180) % 360 - 180


def _positive_share(table: pd.DataFrame) -> Floats:
    positive = (table["label"] == POSITIVE).astype(float).groupby(table["patient"]).mean()
    return np.asarray(positive, dtype=np.float64)
