"""The name under which each patient and each cell first came, from which their fold and roles follow for ever.

A split adds what is new in it, as a table of its own that is never changed, before its record is written. So a night
that was killed and is run again finds what it remembered itself, and comes to the same split. Of two machines that add
at once, each of which would not know the other's, one withdraws its table and reads again.
"""

from __future__ import annotations

import logging
import random
import secrets
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import pandas as pd

from infra.store.keys import ORIGINS, origins_key, table_key
from infra.store.records import table_bytes
from tasks.context import Context
from tasks.nights import THREADS, undamaged
from validation.errors import RetrainError, Unreachable
from validation.records import Split

log = logging.getLogger(__name__)

_TABLE = ".cells.parquet"
COLUMNS = ["pixels", "patient", "origin"]
# Of pixels that are not remembered; no name of a patient has a line break (infra/store/keys.py).
_NEW = "\n"
LONGEST_WAIT_SECONDS = 2.0


@dataclass(frozen=True)
class Memory:
    """All cells that were ever dealt out, in the order in which they came: pixels, patient and origin of each.

    ``tables``: the keys of the tables that they are from.
    """

    rows: pd.DataFrame
    tables: tuple[str, ...] = ()

    def patients(self) -> dict[str, str]:
        """Return the origin of every known patient: the first that it had."""
        known = self.rows[self.rows["patient"] != ""].drop_duplicates("patient")
        return dict(zip(known["patient"], known["origin"], strict=True))

    def pixels(self) -> dict[str, str | None]:
        """Return the origin of all known pixels, empty for cells without a patient; None for those that had two."""
        origins = self.rows.groupby("pixels")["origin"]
        one: dict[str, str | None] = dict(origins.first())
        return {**one, **dict.fromkeys(origins.nunique().loc[lambda count: count > 1].index)}


def remember(context: Context) -> Memory:
    """Return what all splits have remembered."""
    tables = _tables(context)
    with ThreadPoolExecutor(THREADS) as pool:
        read = list(pool.map(partial(_undamaged, context), tables))
    # Tables of before they had numbers did not know of each other: there the first origin by name counts.
    unnumbered = [rows for key, rows in zip(tables, read, strict=True) if not _number(key)]
    numbered = [rows for key, rows in zip(tables, read, strict=True) if _number(key)]
    if unnumbered:
        numbered.insert(0, pd.concat(unnumbered, ignore_index=True).sort_values("origin", kind="stable"))
    rows = pd.concat(numbered, ignore_index=True) if numbered else pd.DataFrame(columns=COLUMNS, dtype=str)
    return Memory(rows.drop_duplicates(COLUMNS, ignore_index=True), tuple(tables))


def _tables(context: Context) -> list[str]:
    keys = (info.key for info in context.store.list(ORIGINS) if info.key.endswith(_TABLE))
    return sorted(keys, key=lambda key: (_number(key), key))


def _number(key: str) -> int:
    """Return the number of a table; 0 for one of before they had any, which is named by its split alone."""
    number, dash, _ = key.removeprefix(ORIGINS).partition("-")
    return int(number) if dash and number.isdecimal() else 0


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
        name = key.removeprefix(ORIGINS).removesuffix(_TABLE)
        id_ = name.split("-")[1] if _number(key) else name
        split = context.records.find(Split, id_)
        table = split.table if split else table_key(Split.kind, id_, "rows")
        rows = undamaged(partial(context.records.load_table, table))
        if rows is None:
            raise
        log.error("%s: it is made again from all rows of split %s", error.message, id_)
        context.store.put(key, table_bytes(rows[COLUMNS].drop_duplicates()))
        return context.records.load_table(key)


def memorise(context: Context, split: str, rows: pd.DataFrame, known: Memory) -> bool:
    """Add what a split has and the memory has not; False when another machine has added something meanwhile.

    Each writes first and lists then, so that of two at once at least one sees the other, and withdraws.
    """
    both = rows[COLUMNS].drop_duplicates().merge(known.rows, how="left", on=COLUMNS, indicator=True)
    new = both.loc[both["_merge"] == "left_only", COLUMNS]
    if not len(new):
        return True
    number = max(map(_number, known.tables), default=0) + 1
    key = origins_key(number, split, secrets.token_hex(4))
    context.store.put(key, table_bytes(new))
    if set(_tables(context)) - {key} <= set(known.tables):
        return True
    context.store.delete(key)
    log.info("another machine splits at the same time: its patients are read first")
    # Two that withdraw before each other would do so again.
    time.sleep(random.uniform(0, LONGEST_WAIT_SECONDS))  # noqa: S311 - not a secret
    return False


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
