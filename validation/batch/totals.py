"""A batch as one row of totals: of all its images, of those that arrived tonight, and their drift."""

from __future__ import annotations

import pandas as pd

from validation.batch import drift
from validation.records import CLASSES, NEGATIVE, POSITIVE
from validation.rules import DataRules

# In place of an infinite ratio, which tables store badly.
NO_RATIO = 1e9


def totals(facts: pd.DataFrame, *, images: int) -> dict[str, float]:
    """Return a batch's totals by check, from one row per accepted image (columns label, patient).

    ``images`` is the number of images before any was rejected.
    """
    counts = {label: int((facts["label"] == label).sum()) for label in CLASSES}
    known = facts[facts["patient"] != ""]
    patients = {label: int(known.loc[known["label"] == label, "patient"].nunique()) for label in CLASSES}
    ratio, rejected = _ratio(counts), _rejected(len(facts), images)
    return {
        "Parasitized cells": counts[POSITIVE],
        "Uninfected cells": counts[NEGATIVE],
        "patients with Parasitized cells": patients[POSITIVE],
        "patients with Uninfected cells": patients[NEGATIVE],
        "class ratio, larger over smaller": ratio,
        "class ratio is comfortable": ratio,
        "share of rejected images": rejected,
        "share of rejected images is comfortable": rejected,
        "share of images without a patient": float((facts["patient"] == "").mean()) if len(facts) else 0.0,
    }


def tonight(
    new: pd.DataFrame, *, images: int, rules: DataRules, reference: pd.DataFrame | None = None
) -> dict[str, float]:
    """Return the totals of tonight's new images, by check; none when they are too few.

    ``new`` has one row per accepted new image, ``images`` counts the new ones before any was rejected, ``reference``
    has one row per training image of the champion.
    """
    if images < rules.night_images:
        return {}
    values = {"tonight: share of rejected images": _rejected(len(new), images)}
    if not len(new):
        return values
    values["tonight: class ratio"] = _ratio({label: int((new["label"] == label).sum()) for label in CLASSES})
    known = new.loc[new["patient"] != "", "patient"]
    values["tonight: largest share of one patient"] = (
        float(known.value_counts().max() / len(new)) if len(known) else 0.0
    )
    if reference is not None:
        values |= drift.expectations(drift.drift(new, reference))
    return values


def limits(rules: DataRules) -> dict[str, tuple[float | None, float | None]]:
    """Return the lowest and the highest value that each check of totals accepts."""
    least, people = rules.min_cells_per_class, rules.min_patients_per_class
    drifts = dict.fromkeys(
        (f"tonight: drift of {name}" for name in (*drift.FACTS, drift.LABEL_SHARE)), (0.0, rules.warn_drift)
    )
    return {
        "Parasitized cells": (least, None),
        "Uninfected cells": (least, None),
        "patients with Parasitized cells": (people, None),
        "patients with Uninfected cells": (people, None),
        "class ratio, larger over smaller": (1, rules.max_class_ratio),
        "class ratio is comfortable": (1, rules.warn_class_ratio),
        "share of rejected images": (0, rules.max_rejected_share),
        "share of rejected images is comfortable": (0, rules.warn_rejected_share),
        "share of images without a patient": (0, 0.05),
        "no finding stops the night": (0, 0),
        "tonight: class ratio": (1, rules.max_class_ratio),
        "tonight: share of rejected images": (0, rules.max_rejected_share),
        "tonight: largest share of one patient": (0, rules.warn_patient_share),
        **drifts,
    }


def _ratio(counts: dict[str, int]) -> float:
    smaller = min(counts.values())
    return max(counts.values()) / smaller if smaller else NO_RATIO


def _rejected(accepted: int, images: int) -> float:
    return (images - accepted) / images if images else 0.0
