"""Split: each patient is in its fold for ever, by hash; no cell is in two folds, whatever its patient is called."""

from __future__ import annotations

import logging

import pandas as pd

from tasks.context import Context
from tasks.judging.assignments import assign_origins, memorise, remember
from tasks.nights import undamaged
from tasks.stage import stage
from validation.digest import digest
from validation.patients import FOLDS, fold_of
from validation.records import NEGATIVE, POSITIVE, CellCount, Split, ValidationResult

log = logging.getLogger(__name__)

COLUMNS = ["key", "sha256", "pixels", "label", "patient", "origin", "fold"]
CROSSINGS = ["key", "pixels", "patient", "origin", "before"]


def split(context: Context, validation: ValidationResult) -> Split:
    """Return the fold of each accepted image.

    It follows from the patient's name alone, or from the name under which its cells first came. An image whose pixels
    were filed under a patient of another origin before is left out and named as a crossing.
    """
    id_ = digest(validation.id, "folds", FOLDS)
    if (stored := context.records.find_whole(Split, id_)) is not None:
        return stored
    facts, is_remembered = context.records.load_table(validation.facts), False
    while not is_remembered:
        known = remember(context)
        dealt = assign_origins(known, facts)
        table = dealt[~dealt["crossed"]].sort_values(["sha256", "key"], kind="stable")
        is_remembered = memorise(context, id_, table, known)
    crossings = dealt.loc[dealt["crossed"], CROSSINGS].sort_values("key", kind="stable")
    for key in crossings["key"][:10]:
        log.warning("left out: the pixels of %s were filed under another patient before", key)
    table = table.assign(fold=[fold_of(origin) for origin in table["origin"]])[COLUMNS]
    before = undamaged(lambda: context.records.latest("split", Split))
    result = Split(
        id=id_,
        validation=validation.id,
        table=context.records.save_table(
            Split, id_, "rows", table, by=["sha256", "key"], before=before.table if before else None
        ),
        folds=tuple(_count(table[(table["fold"] == fold) & (table["patient"] != "")]) for fold in range(FOLDS)),
        without_patient=int((table["patient"] == "").sum()),
        crossed=len(crossings),
        crossings=context.records.save_table(Split, id_, "crossings", crossings) if len(crossings) else None,
    )
    result = context.records.save_once(result, id_)
    context.records.point("split", result)
    return result


def _count(rows: pd.DataFrame) -> CellCount:
    return CellCount(
        patients=int(rows["patient"].nunique()),
        positive=int((rows["label"] == POSITIVE).sum()),
        negative=int((rows["label"] == NEGATIVE).sum()),
    )


split_task = stage(split)
