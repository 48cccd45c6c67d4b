"""The cells of a split as arrays, by role: what a member is trained on, tuned on and judged by."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tasks.cells.packing import load_pack
from tasks.context import Context
from tasks.models.rows import Rows
from validation.digest import digest
from validation.patients import is_tuning
from validation.records import POSITIVE, Pack, Split
from validation.statistics.metrics import Scored


@dataclass(frozen=True)
class CellData:
    """Some cells of a split: ``rows`` int [n] of its table and of its pack.

    ``labels`` bool [n]; ``folds`` int [n]; ``patients``, ``origins``, ``keys``, ``sha256``, ``pixels`` text [n];
    ``array`` the whole pack, uint8 [cells, side, side, 3].
    """

    rows: npt.NDArray[np.intp]
    array: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.bool_]
    folds: npt.NDArray[np.int64]
    patients: npt.NDArray[np.object_]
    origins: npt.NDArray[np.object_]
    keys: npt.NDArray[np.object_]
    sha256: npt.NDArray[np.object_]
    pixels: npt.NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, chosen: npt.NDArray[Any]) -> CellData:
        """Return some of the cells, by mask bool [n] or by place int [m]."""
        names = ("rows", "labels", "folds", "patients", "origins", "keys", "sha256", "pixels")
        return CellData(array=self.array, **{name: getattr(self, name)[chosen] for name in names})

    def tuning(self, member: int) -> CellData:
        """Return the cells on which a member's epoch and temperature are chosen."""
        return self.take(self._is_tuning(member))

    def training(self, member: int) -> CellData:
        """Return the cells that a member is trained on: outside its fold, without its tuning patients."""
        return self.take((self.folds != member) & ~self._is_tuning(member))

    def judged_by(self, folds: Collection[int]) -> CellData:
        """Return the cells of patients with a name in these folds."""
        return self.take(np.isin(self.folds, sorted(folds)) & (self.patients != ""))

    def _is_tuning(self, member: int) -> npt.NDArray[np.bool_]:
        roles = {origin: is_tuning(origin, member) for origin in set(self.origins)}
        return np.array([roles[origin] for origin in self.origins], dtype=bool)

    @property
    def images(self) -> Rows:
        """The cells' pictures, uint8 [n, side, side, 3]."""
        return Rows(self.array, self.rows)

    @cached_property
    def patients_count(self) -> int:
        """Number of patients with a name."""
        return len(set(self.patients) - {""})

    @cached_property
    def codes(self) -> npt.NDArray[np.int64]:
        """The patient of each cell by number, int [n]; all unknown ones share a number."""
        codes, _ = pd.factorize(self.patients, sort=True)
        return codes.astype(np.int64)

    @property
    def digest(self) -> str:
        """Digest of these cells with these labels."""
        return digest(list(self.sha256), self.labels.tolist())

    def scored(self, probabilities: npt.NDArray[np.float64], threshold: float) -> Scored:
        """Put a model's probabilities, float [n], beside the truth."""
        return Scored(self.labels, probabilities, self.codes, threshold)


def load_cells(context: Context, split: Split, pack: Pack) -> CellData:
    """Return all cells of a split, in the order of its table and of its pack."""
    table = context.records.load_table(split.table)

    def column(name: str) -> npt.NDArray[np.object_]:
        return table[name].to_numpy(dtype=object)

    return CellData(
        rows=np.arange(len(table)),
        array=load_pack(context, pack),
        labels=(table["label"] == POSITIVE).to_numpy(dtype=bool),
        folds=table["fold"].to_numpy(dtype=np.int64),
        patients=column("patient"),
        origins=column("origin"),
        keys=column("key"),
        sha256=column("sha256"),
        pixels=column("pixels"),
    )


def tuned_cells(cells: CellData, members: Collection[int]) -> tuple[CellData, npt.NDArray[np.int64]]:
    """Return the tuning cells of all ``members``, one after another, and the member that scores each, int [n].

    A patient may tune several members: its cells are then there for each of them.
    """
    parts = [cells.tuning(member) for member in members]
    places = np.concatenate([part.rows for part in parts]) if parts else np.empty(0, np.intp)
    # ``cells`` is a whole split, so that a row is a place in it.
    return cells.take(places), np.repeat(np.array(list(members), np.int64), [len(part) for part in parts])
