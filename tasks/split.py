"""Split: patient -> train, validation or holdout, by hash, for ever."""

from __future__ import annotations

import pandas as pd

from tasks.context import Context
from tasks.stage import stage
from validation.digest import digest
from validation.patients import side_of
from validation.records import NEGATIVE, POSITIVE, SideCount, Split, ValidationResult

COLUMNS = ["key", "sha256", "pixels", "label", "patient", "side"]


def split(context: Context, validation: ValidationResult) -> Split:
    """Return which accepted image is on which side. A patient's side depends on its name and the generation alone."""
    rules = context.settings.split
    id_ = digest(validation.id, rules.model_dump(mode="json"))
    if (stored := context.records.find(Split, id_)) is not None:
        return stored
    table = context.records.load_table(validation.facts)
    sides = {patient: side_of(patient or None, rules) for patient in table["patient"].unique()}
    table["side"] = table["patient"].map(sides)
    table = table.sort_values(["side", "sha256", "key"], kind="stable")[COLUMNS]
    result = Split(
        id=id_,
        validation=validation.id,
        generation=rules.generation,
        table=context.records.save_table(Split, id_, "rows", table),
        train=_count(table[table["side"] == "train"]),
        validation_side=_count(table[table["side"] == "validation"]),
        holdout=_count(table[table["side"] == "holdout"]),
        without_patient=int((table["patient"] == "").sum()),
    )
    context.records.save(result, id_)
    return result


def _count(rows: pd.DataFrame) -> SideCount:
    return SideCount(
        patients=int(rows.loc[rows["patient"] != "", "patient"].nunique()),
        positive=int((rows["label"] == POSITIVE).sum()),
        negative=int((rows["label"] == NEGATIVE).sum()),
    )


split_task = stage(split)
