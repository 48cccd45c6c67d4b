"""Pack: every cell of a split decoded, padded and resized once, into one memory-mapped uint8 array."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.context import Context, Progress
from tasks.pull import read_object
from tasks.stage import stage
from validation.digest import digest
from validation.errors import RetrainError
from validation.images import decode, to_square
from validation.records import Pack, Split

log = logging.getLogger(__name__)

# Raise it when validation.images.to_square makes other pixels.
PIXELS_VERSION = 1
THREADS = 4


def pack(context: Context, split: Split) -> Pack:
    """Return the pack of a split at the settings' side, made where its array is missing or damaged."""
    side = context.settings.training.side
    id_ = digest(split.id, side, PIXELS_VERSION)
    path = context.workspace.pack_path(id_)
    stored = context.records.find(Pack, id_)
    if stored is not None and path.exists() and _pixels_digest(path) == stored.pixels:
        return stored
    rows = context.records.load_table(split.table)
    _write(context, path, rows, side)
    result = Pack(id=id_, split=split.id, side=side, cells=len(rows), pixels=_pixels_digest(path))
    if stored is not None and stored.pixels != result.pixels:
        raise RetrainError(
            f"pack {id_} came out with other pixels than recorded", "was Pillow changed? install the locked versions"
        )
    context.records.save(result, id_)
    return result


def load_pack(context: Context, pack: Pack) -> npt.NDArray[np.uint8]:
    """Return a pack's array, mapped read-only: uint8 [n, side, side, 3]."""
    array: npt.NDArray[np.uint8] = np.load(context.workspace.pack_path(pack.id), mmap_mode="r", allow_pickle=False)
    return array


def draw_cells(context: Context, cells: Sequence[tuple[str, str]], array: npt.NDArray[np.uint8]) -> None:
    """Decode ``cells`` (key, SHA-256) into ``array`` uint8 [n, side, side, 3], each padded and resized to its size."""
    side = array.shape[1]
    progress = Progress(log, "packed", len(cells))

    def one(cell: tuple[str, str]) -> npt.NDArray[np.uint8]:
        return to_square(decode(read_object(context, *cell), context.settings.data), side)

    with ThreadPoolExecutor(THREADS) as pool:
        for index, pixels in enumerate(pool.map(one, cells)):
            array[index] = pixels
            progress.advance()


def _write(context: Context, path: Path, rows: Any, side: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=(len(rows), side, side, 3))
    try:
        draw_cells(context, list(zip(rows["key"], rows["sha256"], strict=True)), array)
        array.flush()
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _pixels_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


pack_task = stage(pack)
