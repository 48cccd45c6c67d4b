"""Whether tonight's images are unlike the champion's training images, by a measure that does not grow with the batch.

A significance test fires on any large batch. What counts is how far apart the patients are: Glass's delta on one value
a patient, less what chance could have added to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import norm

from validation.records import POSITIVE

Floats = npt.NDArray[np.float64]

# What is compared, by the name that people read; the share of Parasitized is made from the labels.
FACTS = {
    "hue": "hue",
    "saturation": "saturation",
    "brightness": "brightness",
    "focus": "focus",
    "cell size": "cell_pixels",
}
LABEL_SHARE = "the share of Parasitized"
# Of how sure the delta that is reported is at least that large.
CONFIDENCE = 0.95
FULL_CIRCLE = 360.0


def drift(tonight: pd.DataFrame, reference: pd.DataFrame) -> dict[str, float]:
    """Return by how many standard deviations between patients tonight surely differs, by name; 0 where it may not.

    Both tables have one row an image (``patient``, ``label``, and facts). Images without a patient are left out. A
    fact that either table lacks, or that fewer than three patients of the reference have, is not compared.
    """
    tonight, reference = (table[table["patient"] != ""] for table in (tonight, reference))
    found = {}
    for name, column in FACTS.items():
        if column in tonight and column in reference:
            new, old = _by_patient(tonight, column), _by_patient(reference, column)
            if column == "hue":
                new, old = _unrolled(new, old)
            found[name] = sure_delta(new, old)
    shares = (_positive_share(tonight), _positive_share(reference))
    found[LABEL_SHARE] = sure_delta(*shares)
    return {name: value for name, value in found.items() if value is not None}


def sure_delta(new: Floats, reference: Floats) -> float | None:
    """Return Glass's delta of ``new`` against ``reference``, one value a patient, moved towards 0 by its own error.

    ``delta = (mean(new) - mean(reference)) / sd(reference)`` with variance ``1/n + 1/m + delta^2 / (2 (m - 1))``
    (Hedges & Olkin 1985, Statistical Methods for Meta-Analysis, ch. 5); what is returned is the end of its
    two-sided interval that is nearer to 0, or 0 when the interval holds it. None with no new patient, fewer than three
    in the reference, or a reference without any spread.
    """
    if len(new) == 0 or len(reference) < 3 or not (spread := float(np.std(reference, ddof=1))):
        return None
    delta = float(np.mean(new) - np.mean(reference)) / spread
    variance = 1 / len(new) + 1 / len(reference) + delta**2 / (2 * (len(reference) - 1))
    sure = abs(delta) - float(norm.ppf((1 + CONFIDENCE) / 2)) * math.sqrt(variance)
    return math.copysign(max(0.0, sure), delta)


def expectations(found: Mapping[str, float]) -> dict[str, float]:
    """Return the check's name -> size of the drift, for what was compared."""
    return {f"tonight: drift of {name}": abs(value) for name, value in found.items()}


def _by_patient(table: pd.DataFrame, column: str) -> Floats:
    if column == "hue":
        return _mean_angles(table)
    medians = table.groupby("patient")[column].median()
    return medians.to_numpy(dtype=np.float64)


def _mean_angles(table: pd.DataFrame) -> Floats:
    """Return the circular mean of hue (degrees) of each patient."""
    angles = np.deg2rad(table["hue"].to_numpy(dtype=np.float64))
    parts = pd.DataFrame({"patient": table["patient"].to_numpy(), "x": np.cos(angles), "y": np.sin(angles)})
    means = parts.groupby("patient")[["x", "y"]].mean()
    return np.asarray(np.rad2deg(np.arctan2(means["y"], means["x"])), dtype=np.float64)


def _unrolled(new: Floats, reference: Floats) -> tuple[Floats, Floats]:
    """Return angles (degrees) as distances from the reference's circular mean, so that 359 and 1 are near."""
    turns = np.deg2rad(reference)
    centre = float(np.rad2deg(np.arctan2(np.sin(turns).mean(), np.cos(turns).mean()))) if len(reference) else 0.0
    half = FULL_CIRCLE / 2
    return (new - centre + half) % FULL_CIRCLE - half, (reference - centre + half) % FULL_CIRCLE - half


def _positive_share(table: pd.DataFrame) -> Floats:
    positive = (table["label"] == POSITIVE).astype(float).groupby(table["patient"]).mean()
    return np.asarray(positive, dtype=np.float64)
