"""How the models do on parts of the holdout: patient by patient, and by how their slides are stained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from tasks.reporting.inputs import ReportInputs

GROUPS = ("Darkest third", "Middle third", "Palest third")


def worst_patients(r: ReportInputs) -> list[dict[str, Any]]:
    """Holdout patients with the lowest accuracy first; ties by number of mistakes, then by name."""
    rows = _tallied(r, "patient")
    for row in rows:
        row["patient"] = row.pop("group")
    return sorted(rows, key=lambda row: (row["accuracy"], -row["mistakes"], row["patient"]))


def stain_groups(r: ReportInputs) -> list[dict[str, Any]]:
    """Thirds of the patients by the median brightness of their cells, darkest first.

    A slide's stain and its microscope's light are the same for all cells of a patient, so patients are grouped, not
    cells. Empty where the brightness is not known, or for fewer than six patients.
    """
    if r.facts is None or r.predictions is None or r.evaluation is None:
        return []
    brightness = r.predictions["key"].map(r.facts.drop_duplicates("key").set_index("key")["brightness"])
    by_patient = brightness.groupby(r.predictions["patient"]).median().dropna().sort_values(kind="stable")
    if len(by_patient) < 6:
        return []
    parts = np.array_split(by_patient.index.to_numpy(dtype=object), len(GROUPS))
    group = {patient: name for name, part in zip(GROUPS, parts, strict=True) for patient in part}
    rows = _tallied(r, "patient", group)
    for row in rows:
        members = by_patient[[patient for patient, name in group.items() if name == row["group"]]]
        row["patients"], row["from"], row["to"] = len(members), float(members.min()), float(members.max())
    return sorted(rows, key=lambda row: GROUPS.index(row["group"]))


def _tallied(r: ReportInputs, column: str, groups: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """Cells, mistakes and accuracy of each group of cells, challenger and champion."""
    if r.evaluation is None or r.predictions is None or not len(r.predictions):
        return []
    table, ours, theirs = r.predictions, r.evaluation.challenger_metrics, r.evaluation.champion_metrics
    infected, called = table["label"] == 1, table["challenger"] >= ours.threshold
    counted = pd.DataFrame({
        "group": table[column].astype(str) if groups is None else table[column].map(groups),
        "cells": 1,
        "infected": infected,
        "missed": infected & ~called,
        "false_alarms": ~infected & called,
        "champion": (table["champion"] >= theirs.threshold) != infected if theirs is not None else False,
    })  # fmt: skip
    sums = counted.groupby("group", sort=True).sum().astype(int).reset_index()
    rows = [{str(name): value for name, value in row.items()} for row in sums.to_dict("records")]
    for row in rows:
        row["mistakes"] = row["missed"] + row["false_alarms"]
        row["accuracy"] = 1 - row["mistakes"] / row["cells"]
        row["sensitivity"] = 1 - row["missed"] / row["infected"] if row["infected"] else None
        clear = row["cells"] - row["infected"]
        row["specificity"] = 1 - row["false_alarms"] / clear if clear else None
    return rows
