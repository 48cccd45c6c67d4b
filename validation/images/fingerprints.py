"""Near duplicates: the same cell stored again, re-encoded, brighter, resized, or moved by a pixel.

The usual perceptual hashes spend their few bits on the black around a cell. This fingerprint covers the cell's bounding
box and consists of numbers, not bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

_GRID = 32
_WAVES = 192
# Fingerprints with a cosine above this are near duplicates. The closest two of 6,890 real cells, of different patients,
# have 0.961; altered copies are above it (docs/data.md).
ALIKE = 0.97
_ROWS_AT_ONCE, _COLUMNS_AT_ONCE = 512, 65_536
_OUTLINE = 95


def fingerprint(grey: npt.NDArray[Any], mask: npt.NDArray[Any]) -> str:
    """Return 384 hex digits: the 192 lowest frequencies of a cell except its mean, a signed byte each.

    ``grey`` and ``mask`` are uint8 [height, width]. The bounding box is scaled to 32 x 32 and transformed (DCT). Each
    coefficient is multiplied by its frequency, with which a picture's energy falls, and the whole is normalised: it
    does not depend on size, brightness, or the black around the cell.
    """
    left, top, width, height = cv2.boundingRect(mask)
    box = np.s_[top : top + height, left : left + width]
    small = cv2.resize(cv2.bitwise_and(grey[box], mask[box]), (_GRID, _GRID), interpolation=cv2.INTER_AREA)
    places, weights = _frequencies()
    waves = cv2.dct(small.astype(np.float32)).ravel()[places] * weights
    length = float(np.abs(waves).max())
    scaled = np.rint(waves * (127 / length)) if length else waves
    return scaled.astype(np.int8).tobytes().hex()


@cache
def _frequencies() -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    rows, columns = np.mgrid[:_GRID, :_GRID]
    frequency = np.hypot(rows, columns).ravel()
    places = np.argsort(frequency, kind="stable")[1 : _WAVES + 1]
    return places, frequency[places].astype(np.float32)


def near_duplicates(fingerprints: Sequence[str], known: npt.NDArray[np.bool_] | None = None) -> list[tuple[int, int]]:
    """Return the pairs (i, j), i < j, of nearly equal fingerprints, sorted; empty fingerprints pair with none.

    ``known`` [n]: which have been compared with each other before; pairs of two of them are left out. Time grows with
    the number of the others times that of all, memory with that of all.
    """
    compared = np.zeros(len(fingerprints), bool) if known is None else known
    new = np.flatnonzero(~compared)
    if not len(new):
        return []
    vectors = _unit_vectors(fingerprints)
    outline = _outlines(vectors)
    pairs: list[tuple[int, int]] = []
    last = int(np.flatnonzero(compared).max(initial=-1))
    for rows in np.split(new, range(_ROWS_AT_ONCE, len(new), _ROWS_AT_ONCE)):
        # Of two new ones the later is compared with the earlier.
        end = max(last, int(rows.max())) + 1
        for start in range(0, end, _COLUMNS_AT_ONCE):
            others = slice(start, min(start + _COLUMNS_AT_ONCE, end))
            one, other = np.nonzero(outline[rows] @ outline[others].T > ALIKE)
            one, other = rows[one], other + start
            meet = (other < one) | compared[other]
            one, other = one[meet], other[meet]
            alike = np.einsum("ij,ij->i", vectors[one], vectors[other]) > ALIKE
            pairs += zip(*np.sort([one[alike], other[alike]], axis=0).tolist(), strict=True)
    return sorted(pairs)


def _unit_vectors(fingerprints: Sequence[str]) -> npt.NDArray[np.float32]:
    vectors = np.zeros((len(fingerprints), _WAVES), np.float32)
    for row, text in zip(vectors, fingerprints, strict=True):
        if text:
            row[:] = np.frombuffer(bytes.fromhex(text), np.int8)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors /= np.where(lengths > 0, lengths, 1)
    return vectors


def _outlines(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return shorter vectors whose products are upper bounds of those of the whole ones, for half of the work.

    By Cauchy-Schwarz the rest of two vectors adds at most the product of the rests' lengths.
    """
    rest = np.linalg.norm(vectors[:, _OUTLINE:], axis=1, keepdims=True) * np.float32(1 + 1e-5)  # rounding
    return np.hstack([vectors[:, :_OUTLINE], rest]).astype(np.float32, copy=False)
