"""A champion of version 0.1, a single network without members: which cells it may be judged by.

It was trained and chosen on the patients of two of three sides, which its split's table names. It may be judged by all
others: its own holdout, and whoever came later.
"""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import pandas as pd

from infra.store.keys import record_key, table_key
from tasks.cells.cell_data import CellData
from tasks.context import Context
from validation.errors import RetrainError, Unreachable
from validation.records import Candidate, Split

_SEEN = ("train", "validation")


def unseen(context: Context, candidate: str, cells: CellData) -> npt.NDArray[np.bool_]:
    """Return which cells a candidate without members has not seen, bool [n]; none where its records are gone."""
    table = sides_of(context, candidate)
    if table is None:
        return np.zeros(len(cells), bool)
    seen = table[table["side"].isin(_SEEN)]
    patients, pixels = set(seen["patient"]) | {""}, set(seen["pixels"])
    # A patient of another name whose cells it knows is one that it has seen.
    patients |= {name for name, pixel in zip(cells.patients, cells.pixels, strict=True) if pixel in pixels}
    return np.array([name not in patients for name in cells.patients], bool)


def sides_of(context: Context, candidate: str) -> pd.DataFrame | None:
    """Return the table of a candidate's split (pixels, patient, side ...); None where its records are gone."""
    try:
        spec = json.loads(context.store.get(record_key(Candidate.kind, candidate)))["spec"]
        return context.records.load_table(table_key(Split.kind, spec["split"], "rows"))
    except Unreachable:
        raise
    except (RetrainError, ValueError, KeyError, TypeError):
        return None
