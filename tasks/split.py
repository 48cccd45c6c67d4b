"""Split: each patient stays in train, validation or holdout, by hash; no cell is on two sides, whatever its patient."""

from __future__ import annotations

import logging

import pandas as pd

from tasks.context import Context
from tasks.judging.assignments import memorise, remember
from tasks.judging.generations import current_generation, fixed_sides
from tasks.stage import stage
from validation.digest import digest
from validation.patients import side_of
from validation.records import NEGATIVE, POSITIVE, SideCount, SideName, Split, ValidationResult

log = logging.getLogger(__name__)

COLUMNS = ["key", "sha256", "pixels", "label", "patient", "side"]
CROSSINGS = ["key", "pixels", "patient", "side", "before"]


def split(context: Context, validation: ValidationResult) -> Split:
    """Return the side of each accepted image.

    A patient keeps its first side in the current generation; a new patient's side follows from its name and the
    generation alone. An image whose pixels were on another side of this generation (a cell that was filed under
    another patient since) is left out and named as a crossing.
    """
    generation = current_generation(context)
    rules = context.settings.split.model_copy(update={"generation": generation.name})
    id_ = digest(validation.id, rules.model_dump(mode="json"))
    if (stored := context.records.find(Split, id_)) is not None:
        return stored
    table = context.records.load_table(validation.facts)
    known = remember(context, generation.name)
    sides = {**known.patients(), **fixed_sides(context, generation)}
    table["side"] = [sides.get(name) or side_of(name or None, rules) for name in table["patient"]]
    before = known.pixels()
    table["before"] = [before.get(pixels, side) for pixels, side in zip(table["pixels"], table["side"], strict=True)]
    crossed = table["before"] != table["side"]
    crossings = table.loc[crossed, CROSSINGS].fillna({"before": "two sides"}).sort_values("key", kind="stable")
    for key in crossings["key"][:10]:
        log.warning("left out: the pixels of %s were on another side of generation %s before", key, generation.name)
    table = table[~crossed].sort_values(["side", "sha256", "key"], kind="stable")[COLUMNS]
    memorise(context, generation.name, id_, table, known)
    result = Split(
        id=id_,
        validation=validation.id,
        generation=generation.name,
        table=context.records.save_table(Split, id_, "rows", table),
        train=_count(table, "train"),
        validation_side=_count(table, "validation"),
        holdout=_count(table, "holdout"),
        without_patient=int((table["patient"] == "").sum()),
        crossed=len(crossings),
        crossings=context.records.save_table(Split, id_, "crossings", crossings) if len(crossings) else None,
    )
    context.records.save(result, id_)
    return result


def _count(table: pd.DataFrame, side: SideName) -> SideCount:
    rows = table[table["side"] == side]
    return SideCount(
        patients=int(rows.loc[rows["patient"] != "", "patient"].nunique()),
        positive=int((rows["label"] == POSITIVE).sum()),
        negative=int((rows["label"] == NEGATIVE).sum()),
    )


split_task = stage(split)
