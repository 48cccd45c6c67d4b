"""What was ever on which side of a generation: patients and pixels, so that nothing turns up on two sides.

A split adds what is new in it, as a table of its own that is never changed, before its record is written. So a night
that was killed and is run again finds what it remembered itself, and comes to the same split.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from infra.store.keys import OURS
from tasks.context import Context
from validation.records import Generation, SideName, Split

COLUMNS = ["pixels", "patient", "side"]
# A patient or a cell of which two sides are told (two machines at once) is kept out of the holdout.
_SIDES: tuple[SideName, ...] = ("train", "validation", "holdout")


@dataclass(frozen=True)
class Memory:
    """All cells that were ever on a side of one generation, with the pixels and the patient of each."""

    rows: pd.DataFrame
    stored: bool = True

    def patients(self) -> dict[str, SideName]:
        """Return the side of every patient that was ever dealt out."""
        known = self.rows[self.rows["patient"] != ""]
        return _first_side(known, "patient")

    def pixels(self) -> dict[str, SideName | None]:
        """Return the side of all pixels that were ever dealt out; None for those that were on two."""
        sides = self.rows.groupby("pixels")["side"]
        one: dict[str, SideName | None] = dict(sides.first())
        return {**one, **dict.fromkeys(sides.nunique().loc[lambda count: count > 1].index)}


def remember(context: Context, generation: str) -> Memory:
    """Return what is remembered of a generation: since it began, and what it began with."""
    tables = [
        context.records.load_table(info.key)
        for info in sorted(context.store.list(f"{OURS}{Generation.kind}/{generation}/"), key=lambda info: info.key)
        if info.key.endswith(".memory.parquet")
    ]
    # Splits of before there was a memory are remembered by their own tables, until the next split stores all of it.
    stored = bool(tables)
    tables = tables or [context.records.load_table(split.table)[COLUMNS] for split in splits_of(context, generation)]
    begun = context.records.find(Generation, generation)
    if begun is not None:
        tables.append(context.records.load_table(begun.pixels))
    rows = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS, dtype=str)
    return Memory(rows.drop_duplicates(COLUMNS, ignore_index=True), stored)


def memorise(context: Context, generation: str, split: str, rows: pd.DataFrame, known: Memory) -> None:
    """Add what a split has and the memory has not."""
    both = rows[COLUMNS].drop_duplicates().merge(known.rows, how="left", on=COLUMNS, indicator=True)
    new = both.loc[both["_merge"] == "left_only", COLUMNS]
    if not known.stored:
        new = pd.concat([known.rows, new], ignore_index=True)
    if len(new):
        context.records.save_table(Generation, f"{generation}/{split}", "memory", new)


def splits_of(context: Context, generation: str) -> list[Split]:
    """Return all stored splits of a generation."""
    splits = (context.records.load(Split, id_) for id_ in context.records.ids(Split))
    return [split for split in splits if split.generation == generation]


def _first_side(rows: pd.DataFrame, name: str) -> dict[str, SideName]:
    order = rows["side"].map({side: number for number, side in enumerate(_SIDES)})
    lowest = order.groupby(rows[name]).min()
    return {str(value): _SIDES[int(number)] for value, number in lowest.items()}
