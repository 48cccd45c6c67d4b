"""Cells decoded, padded and resized into one uint8 array that is read memory-mapped."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.local.files import write_at
from infra.local.packed_cells import PackedCellCache, Place
from infra.processes.dask_cluster import LOCAL
from tasks.cells.accepted import square_of
from tasks.cells.on_dask import WORTH_AN_ENGINE, draw_chunk, keys_by_content, map_chunks
from tasks.context import Context, Progress
from validation.errors import RetrainError
from validation.records import Pack

log = logging.getLogger(__name__)

# Raise it when validation.images.decode.to_square makes other pixels.
PIXELS_VERSION = 1
# Decoding and resizing release Python's lock; more threads than cores only wait for it (on 2 cores 2 pack 8% more
# than 4).
THREADS = min(8, len(os.sched_getaffinity(0)))
BATCH = 64
# The cache's index is read once for this many cells, and what is known of them is in memory at a time: 10 MB.
SLICE = 1 << 15


def load_pack(context: Context, pack: Pack) -> npt.NDArray[np.uint8]:
    """Return a pack's array, mapped read-only: uint8 [n, side, side, 3]."""
    array: npt.NDArray[np.uint8] = np.load(context.workspace.pack_path(pack.id), mmap_mode="r", allow_pickle=False)
    return array


def packed_cells_place(context: Context, side: int | None = None) -> tuple[Path, int]:
    """Return the folder of packed cells of a side (default: the settings'), and the bytes of one cell."""
    side = side or context.settings.training.side
    # Another Pillow may round otherwise, and rows of two versions must not meet in one array.
    made_by = f"{side}-{PIXELS_VERSION}-pillow-{version('pillow')}-sha256"
    return context.workspace.home / "cache" / "cells" / made_by, side * side * 3


def draw_cells(context: Context, cells: Sequence[tuple[str, str]], array: npt.NDArray[np.uint8]) -> None:
    """Decode ``cells`` (key, SHA-256) into ``array`` uint8 [n, side, side, 3], each padded and resized to its size.

    Raises:
        RetrainError: when a cell is gone or cannot be decoded any more.
    """
    progress = Progress(log, "resized", len(cells))
    with ThreadPoolExecutor(THREADS) as pool:
        squares = pool.map(lambda cell: square_of(context, cell[0], cell[1], array.shape[1]), cells)
        for index, pixels in enumerate(squares):
            array[index] = pixels
            progress.advance()


def write_pack(context: Context, path: Path, rows: Any, side: int) -> str:
    """Write the array of all rows: those that were packed before are copied, the others are made and cached.

    Returns its ``pixels_digest``, for which only the rows that are new are hashed: the cache has the others' digests
    from when they were made, and each row is compared with its checksum when it is copied. What lies in the file later
    is hashed as a whole where a pack is used again (tasks/pack.py).

    Plain writes at each row's place, not a mapped file, so that memory stays flat however many cells there are.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    cells = list(zip(rows["key"], rows["sha256"], strict=True))
    progress = Progress(log, "packed", len(cells))
    digests: list[bytes] = [b""] * len(cells)
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False}
    try:
        with temporary.open("wb", buffering=0) as file, PackedCellCache(*packed_cells_place(context, side)) as cache:
            np.lib.format.write_array_header_1_0(file, {**header, "shape": (len(cells), side, side, 3)})
            begin = file.tell()
            if context.settings.engine != LOCAL:
                _draw_on_engine(context, cache, cells, side)

            def write_batch(batch: Sequence[tuple[str, str]], start: int, known: Mapping[str, Place]) -> int:
                made: list[tuple[str, bytes]] = []
                squares: list[bytes] = []
                for number, (key, sha256) in enumerate(batch, start):
                    place = known.get(sha256)
                    if place is None or (square := cache.read(place)) is None:
                        square = square_of(context, key, sha256, side).tobytes()
                        made.append((sha256, square))
                        digests[number] = hashlib.sha256(square).digest()
                    else:
                        digests[number] = place.sha256
                    squares.append(square)
                if made:
                    cache.append(made)
                write_at(file.fileno(), b"".join(squares), begin + start * side * side * 3)
                return len(batch)

            with ThreadPoolExecutor(THREADS) as pool:
                for first in range(0, len(cells), SLICE):
                    part = cells[first : first + SLICE]
                    batches = [part[at : at + BATCH] for at in range(0, len(part), BATCH)]
                    known = cache.find({sha256 for _, sha256 in part})
                    for count in pool.map(write_batch, batches, range(first, len(cells), BATCH), repeat(known)):
                        progress.advance(count)
        temporary.replace(path)
        return _digest_of(digests, side)
    except OSError as error:
        raise RetrainError(
            f"cannot write the pack {path}: {error.strerror or error}",
            "free some space, or choose another RETRAIN_HOME",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _draw_on_engine(context: Context, cache: PackedCellCache, cells: Sequence[tuple[str, str]], side: int) -> None:
    """Draw ``cells`` (key, SHA-256) into the cache with the settings' engine; the rest is drawn here afterwards."""
    known = cache.find({sha256 for _, sha256 in cells})
    cells = [cell for cell in cells if cell[1] not in known]
    if len(cells) < WORTH_AN_ENGINE:
        return
    contents = keys_by_content(*zip(*cells, strict=True))
    progress = Progress(log, "drawn", len(contents))
    for drawn in map_chunks(context.settings, draw_chunk, contents, side, context.settings.data.max_pixels):
        cache.append(drawn)
        progress.advance(len(drawn))


def pixels_digest(path: Path, cells: int, side: int) -> str:
    """Return the digest of a pack's file, read as a whole: the SHA-256 over its shape and each row's SHA-256, in order.

    Empty where the file has another shape, or none.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):  # an empty file has no header to read
        return ""
    if array.dtype != np.uint8 or array.shape != (cells, side, side, 3):
        return ""
    return _digest_of((hashlib.sha256(row).digest() for row in array), side)


def _digest_of(rows: Iterable[bytes], side: int) -> str:
    whole = hashlib.sha256(f"uint8 {side}x{side}x3".encode())
    for row in rows:
        whole.update(row)
    return whole.hexdigest()
