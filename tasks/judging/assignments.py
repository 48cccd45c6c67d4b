"""The name under which each patient and each cell first came, from which their fold and roles follow for ever.

A split adds what is new in it, as a table of its own that is never changed, before its record is written. So a night
that was killed and is run again finds what it remembered itself, and comes to the same split.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import pandas as pd

from infra.store.keys import ORIGINS, table_key
from tasks.context import Context
from tasks.nights import undamaged
from validation.errors import RetrainError, Unreachable
from validation.records import Split

log = logging.getLogger(__name__)

_TABLE = ".cells.parquet"
COLUMNS = ["pixels", "patient", "origin"]
# Of pixels that are not remembered; no name of a patient has a line break (infra/store/keys.py).
_NEW = "\n"


@dataclass(frozen=True)
class Memory:
    """All cells that were ever dealt out: pixels, patient and origin of each."""

    rows: pd.DataFrame

    def patients(self) -> dict[str, str]:
        """Return the origin of every known patient; of two (two machines at once) the first by name."""
        known = self.rows[self.rows["patient"] != ""]
        return dict(known.groupby("patient")["origin"].min())

    def pixels(self) -> dict[str, str | None]:
        """Return the origin of all known pixels, empty for cells without a patient; None for those that had two."""
        origins = self.rows.groupby("pixels")["origin"]
        one: dict[str, str | None] = dict(origins.first())
        return {**one, **dict.fromkeys(origins.nunique().loc[lambda count: count > 1].index)}


def remember(context: Context) -> Memory:
    """Return what all splits have remembered."""
    keys = sorted(info.key for info in context.store.list(ORIGINS) if info.key.endswith(_TABLE))
    tables = [_undamaged(context, key) for key in keys]
    rows = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS, dtype=str)
    return Memory(rows.drop_duplicates(COLUMNS, ignore_index=True))


def _undamaged(context: Context, key: str) -> pd.DataFrame:
    """Return a remembered table; a damaged one is made again from all rows of its split.

    Raises:
        RetrainError: when these are gone too: without it cells may change their fold.
    """
    try:
        return context.records.load_table(key)
    except Unreachable:
        raise
    except RetrainError as error:
        split = key.removeprefix(ORIGINS).removesuffix(_TABLE)
        rows = undamaged(partial(context.records.load_table, table_key(Split.kind, split, "rows")))
        if rows is None:
            raise
        log.error("%s: it is made again from all rows of split %s", error.message, split)
        context.records.save_table(Split, f"origins/{split}", "cells", rows[COLUMNS].drop_duplicates())
        return context.records.load_table(key)


def memorise(context: Context, split: str, rows: pd.DataFrame, known: Memory) -> None:
    """Add what a split has and the memory has not."""
    both = rows[COLUMNS].drop_duplicates().merge(known.rows, how="left", on=COLUMNS, indicator=True)
    new = both.loc[both["_merge"] == "left_only", COLUMNS]
    if len(new):
        context.records.save_table(Split, f"origins/{split}", "cells", new)


def assign_origins(known: Memory, cells: pd.DataFrame) -> pd.DataFrame:
    """Return ``cells`` (pixels, patient) with ``origin``, ``crossed``, and ``before``, the other origin of its pixels.

    A patient keeps its origin. A new one whose cells are known under another name (a renamed patient, or one whose
    cells had no name) has the origin of most of them; else its own name. A cell with known pixels keeps their origin:
    with another than its patient's it can neither be trained on nor be judged by, since a member may have seen the one
    and be judged by the other.
    """
    pixels, patients = known.pixels(), known.patients()
    before = [pixels.get(str(name), _NEW) for name in cells["pixels"]]
    for patient, origin in _origins_by_pixels(cells["patient"], before).items():
        patients.setdefault(patient, origin)
    own = [patients.get(str(name), str(name)) for name in cells["patient"]]
    origins = [
        old if old not in (_NEW, None) and not patient else origin
        for old, patient, origin in zip(before, cells["patient"], own, strict=True)
    ]
    crossed = [old not in {_NEW, origin} for old, origin in zip(before, origins, strict=True)]
    named = [
        ("two patients" if old is None else old) if is_crossed else ""
        for old, is_crossed in zip(before, crossed, strict=True)
    ]
    return cells.assign(origin=origins, before=named, crossed=crossed)


def _origins_by_pixels(patients: Iterable[str], before: Iterable[str | None]) -> dict[str, str]:
    """Return the origin of most known cells of each patient; of equally many the first by name."""
    counts: dict[str, Counter[str]] = {}
    for patient, origin in zip(patients, before, strict=True):
        if patient and origin is not None and origin != _NEW:
            counts.setdefault(patient, Counter())[origin] += 1
    return {name: min(count, key=lambda origin: (-count[origin], origin)) for name, count in counts.items()}
