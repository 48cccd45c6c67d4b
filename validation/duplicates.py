"""Near duplicates: the same cell stored again, re-encoded, shifted by a pixel or resized a little."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

_GRID = 16
_WAVES = 8


def fingerprint(grey: npt.NDArray[Any], mask: npt.NDArray[Any]) -> str:
    """Return 16 hex digits that nearly the same cell nearly shares: pHash within the cell's bounding box."""
    left, top, width, height = cv2.boundingRect(mask)
    box = np.s_[top : top + height, left : left + width]
    small = cv2.resize(grey[box], (32, 32), interpolation=cv2.INTER_AREA)
    waves = cv2.dct(small.astype(np.float32))[:_WAVES, :_WAVES].ravel()
    bits = waves > np.median(waves)
    return np.packbits(bits).tobytes().hex()


def near_duplicates(fingerprints: Sequence[str], *, at_most: int = 3) -> list[tuple[int, int]]:
    """Return the pairs (i, j), i < j, whose fingerprints differ in ``at_most`` bits, sorted."""
    hashes = np.array([int(text, 16) if text else 0 for text in fingerprints], np.uint64)
    pairs = []
    for i in range(len(hashes) - 1):
        near = np.flatnonzero(np.bitwise_count(hashes[i + 1 :] ^ hashes[i]) <= at_most)
        pairs += [(i, i + 1 + int(j)) for j in near if fingerprints[i] and fingerprints[i + 1 + int(j)]]
    return pairs
