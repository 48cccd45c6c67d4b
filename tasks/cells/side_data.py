"""One side of a split as arrays, as training, thresholds and evaluation read it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

from tasks.cells.packing import load_pack
from tasks.context import Context
from validation.digest import digest
from validation.records import POSITIVE, Pack, SideName, Split
from validation.statistics.metrics import Scored


@dataclass(frozen=True)
class SideData:
    """The cells of one side: rows ``start`` to ``stop`` of the split's table and of its pack.

    ``images`` uint8 [n, side, side, 3], ``labels`` bool [n], ``patients`` and ``keys`` text [n].
    """

    start: int
    stop: int
    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.bool_]
    patients: tuple[str, ...]
    keys: tuple[str, ...]
    sha256: tuple[str, ...]

    @cached_property
    def patients_count(self) -> int:
        """Number of known patients."""
        return len(set(self.patients) - {""})

    @cached_property
    def codes(self) -> npt.NDArray[np.int64]:
        """The patient of each cell by number, int [n]; all unknown ones share a number."""
        codes, _ = pd.factorize(np.array(self.patients, dtype=object), sort=True)
        return codes.astype(np.int64)

    @property
    def digest(self) -> str:
        """Digest of these cells with these labels."""
        return digest(list(self.sha256), self.labels.tolist())

    def scored(self, probabilities: npt.NDArray[np.float64], threshold: float) -> Scored:
        """Put a model's probabilities, float [n], beside the truth."""
        return Scored(self.labels, probabilities, self.codes, threshold)


def load_side(context: Context, split: Split, pack: Pack, side: SideName) -> SideData:
    """Return one side of a split. Sides are contiguous: the split's table is sorted by side."""
    rows = context.records.load_table(split.table)
    where = np.flatnonzero((rows["side"] == side).to_numpy())
    start, stop = (int(where[0]), int(where[-1]) + 1) if len(where) else (0, 0)
    rows = rows.iloc[start:stop]
    return SideData(
        start=start,
        stop=stop,
        images=load_pack(context, pack)[start:stop],
        labels=(rows["label"] == POSITIVE).to_numpy(dtype=bool),
        patients=tuple(rows["patient"]),
        keys=tuple(rows["key"]),
        sha256=tuple(rows["sha256"]),
    )
