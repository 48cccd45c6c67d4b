"""Some rows of the packed cells, read from the file as they are needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.models import Images


@dataclass(frozen=True)
class Rows:
    """The images of ``rows``, int64 [n], of ``pack``, uint8 [cells, side, side, 3]: an array that needs no memory."""

    pack: Images
    rows: npt.NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:
        """n, side, side, 3."""
        return (len(self.rows), *self.pack.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the pack."""
        return self.pack.dtype

    @property
    def ndim(self) -> int:
        """4."""
        return self.pack.ndim

    @property
    def nbytes(self) -> int:
        """What the images would take in memory."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def __len__(self) -> int:
        """Return n."""
        return len(self.rows)

    def __getitem__(self, chosen: slice | npt.NDArray[np.integer]) -> Images:
        """Return a copy of the images of a slice or of an int array [m], uint8 [m, side, side, 3]."""
        return np.asarray(self.pack[self.rows[chosen]])
