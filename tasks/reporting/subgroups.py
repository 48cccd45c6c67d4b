"""The models on parts of the judging patients: one by one, and by the stain of their slides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from tasks.reporting.inputs import ReportInputs

GROUPS = ("Darkest third", "Middle third", "Palest third")


def tallies_by_patient(r: ReportInputs) -> list[dict[str, Any]]:
    """Return cells, calls and mistakes of each judging patient, by name; empty where nothing was judged."""
    return [] if r.predictions is None else _tallies(r, r.predictions["patient"].astype(str))


def worst_patients(r: ReportInputs) -> list[dict[str, Any]]:
    """Return the judging patients, lowest accuracy first; ties by number of mistakes, then by name."""
    return sorted(tallies_by_patient(r), key=lambda row: (row["accuracy"], -row["mistakes"], row["group"]))


def stain_groups(r: ReportInputs) -> list[dict[str, Any]]:
    """Return thirds of the patients by the median brightness of their cells, darkest first.

    A slide's stain and its microscope's light are the same for all cells of a patient, so patients are grouped, not
    cells. Empty where the brightness is not known, or for fewer than six patients.
    """
    if r.facts is None or r.predictions is None or r.evaluation is None:
        return []
    brightness = r.predictions["key"].map(r.facts.drop_duplicates("key").set_index("key")["brightness"])
    by_patient = brightness.groupby(r.predictions["patient"]).median().dropna().sort_values(kind="stable")
    if len(by_patient) < 6:
        return []
    thirds = np.array_split(np.arange(len(by_patient)), len(GROUPS))
    parts = {name: by_patient.iloc[places] for name, places in zip(GROUPS, thirds, strict=True)}
    group = {patient: name for name, part in parts.items() for patient in part.index}
    rows = _tallies(r, r.predictions["patient"].map(group))
    for row in rows:
        part = parts[row["group"]]
        row.update({"patients": len(part), "from": float(part.min()), "to": float(part.max())})
    return sorted(rows, key=lambda row: GROUPS.index(row["group"]))


def _tallies(r: ReportInputs, group: pd.Series) -> list[dict[str, Any]]:
    """Return cells, mistakes and accuracy of each group of cells, challenger and champion."""
    if r.evaluation is None or r.predictions is None or not len(r.predictions):
        return []
    table, challenger, champion = r.predictions, r.evaluation.challenger_metrics, r.evaluation.champion_metrics
    infected, called = table["label"] == 1, table["challenger"] >= challenger.threshold
    by_champion = table["champion"] >= champion.threshold if champion is not None else False
    counted = pd.DataFrame({
        "group": group,
        "cells": 1,
        "infected": infected,
        "missed": infected & ~called,
        "false_alarms": ~infected & called,
        "champion": by_champion != infected if champion is not None else False,
        "champion_called": by_champion,
    })  # fmt: skip
    sums = counted.groupby("group", sort=True).sum().astype(int).reset_index()
    rows: list[dict[str, Any]] = [{str(name): value for name, value in row.items()} for row in sums.to_dict("records")]
    for row in rows:
        clear = row["cells"] - row["infected"]
        row["mistakes"] = row["missed"] + row["false_alarms"]
        row["called"] = row["infected"] - row["missed"] + row["false_alarms"]
        row["accuracy"] = 1 - row["mistakes"] / row["cells"]
        row["sensitivity"] = 1 - row["missed"] / row["infected"] if row["infected"] else None
        row["specificity"] = 1 - row["false_alarms"] / clear if clear else None
    return rows
