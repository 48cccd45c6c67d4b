"""Cells decoded, padded and resized into one uint8 array that is read memory-mapped."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.local.packed_cells import PackedCellCache
from infra.processes.dask_cluster import LOCAL, open_engine
from tasks.cells.accepted import square_of
from tasks.cells.on_dask import WORTH_AN_ENGINE, Place, draw_chunk, in_chunks, refuse_others
from tasks.context import Context, Progress
from validation.errors import RetrainError
from validation.records import Pack

log = logging.getLogger(__name__)

# Raise it when validation.images.decode.to_square makes other pixels.
PIXELS_VERSION = 1
# Decoding and resizing let go of Python's lock; more threads than cores only wait for it (on 2 cores 2 pack 8% more
# than 4).
THREADS = min(8, len(os.sched_getaffinity(0)))
BATCH = 64
# The shelf's index is read once for so many, and what is known of them is held at a time: 10 MB.
SLICE = 1 << 15


def load_pack(context: Context, pack: Pack) -> npt.NDArray[np.uint8]:
    """Return a pack's array, mapped read-only: uint8 [n, side, side, 3]."""
    array: npt.NDArray[np.uint8] = np.load(context.workspace.pack_path(pack.id), mmap_mode="r", allow_pickle=False)
    return array


def shelf_place(context: Context, side: int | None = None) -> tuple[Path, int]:
    """Return where packed cells of a side (default: the settings') are kept, and the bytes of one."""
    side = side or context.settings.training.side
    # Another Pillow may round otherwise, and rows of two versions must not meet in one array.
    made_by = f"{side}-{PIXELS_VERSION}-pillow-{version('pillow')}"
    return context.workspace.home / "cache" / "cells" / made_by, side * side * 3


def draw_cells(context: Context, cells: Sequence[tuple[str, str]], array: npt.NDArray[np.uint8]) -> None:
    """Decode ``cells`` (key, SHA-256) into ``array`` uint8 [n, side, side, 3], each padded and resized to its size."""
    side = array.shape[1]
    progress = Progress(log, "resized", len(cells))
    with ThreadPoolExecutor(THREADS) as pool:
        for index, pixels in enumerate(pool.map(lambda cell: square_of(context, *cell, side), cells)):
            array[index] = pixels
            progress.advance()


def write_pack(context: Context, path: Path, rows: Any, side: int) -> None:
    """Write the array of all rows: those that were packed before are copied, the others made now and kept.

    Plain writes at each row's place, not a mapped file: so memory stays flat however many cells there are.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    shelf_path, row_bytes = shelf_place(context, side)
    progress = Progress(log, "packed", len(rows))
    try:
        with temporary.open("wb") as file, PackedCellCache(shelf_path, row_bytes) as shelf:
            shape = (len(rows), side, side, 3)
            np.lib.format.write_array_header_1_0(
                file,
                {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape},
            )
            file.flush()
            press = _PackWriter(context, shelf, file.fileno(), file.tell(), side)
            if context.settings.engine != LOCAL:
                _draw_elsewhere(context, shelf, _cells(rows), side)
            with ThreadPoolExecutor(THREADS) as pool:
                for start in range(0, len(rows), SLICE):
                    for count in press.rows(_cells(rows[start : start + SLICE]), start, pool):
                        progress.advance(count)
        temporary.replace(path)
    except OSError as error:
        raise RetrainError(
            f"cannot write the pack {path}: {error.strerror or error}",
            "free some space, or choose another RETRAIN_HOME",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _cells(rows: Any) -> list[tuple[str, str]]:
    """Return (key, sha256) of each row."""
    return list(zip(rows["key"], rows["sha256"], strict=True))


def _draw_elsewhere(context: Context, shelf: PackedCellCache, cells: Sequence[tuple[str, str]], side: int) -> None:
    """Let the workers of the engine that the settings name draw ``cells`` (key, sha256) onto the shelf.

    What they do not draw is drawn here afterwards, like any cell that is not on the shelf.
    """
    known = shelf.find({sha256 for _, sha256 in cells})
    cells = [cell for cell in cells if cell[1] not in known]
    if len(cells) < WORTH_AN_ENGINE:
        return
    keys: dict[str, list[str]] = {}
    for key, sha256 in cells:
        keys.setdefault(sha256, []).append(key)
    contents = [(sha256, tuple(where)) for sha256, where in keys.items()]
    place, limit = Place.of(context.settings), context.settings.data.max_pixels
    progress = Progress(log, "drawn", len(contents))
    with open_engine(context.settings.engine) as engine:
        refuse_others(engine)
        for drawn in engine.map(draw_chunk, ((place, chunk, side, limit) for chunk in in_chunks(contents))):
            shelf.append(drawn)
            progress.advance(len(drawn))


class _PackWriter:
    """Puts rows into the array's file, each at its place; several threads at once."""

    def __init__(self, context: Context, shelf: PackedCellCache, file: int, begins: int, side: int) -> None:
        self._context, self._shelf, self._file, self._begins, self._side = context, shelf, file, begins, side

    def rows(self, cells: Sequence[tuple[str, str]], start: int, pool: Executor) -> Iterator[int]:
        """Write the rows of ``cells`` (key, sha256), the first of which is row ``start``; yield how many."""
        known = self._shelf.find({sha256 for _, sha256 in cells})
        batches = range(0, len(cells), BATCH)
        return pool.map(lambda at: self._batch(cells[at : at + BATCH], start + at, known), batches)

    def _batch(self, cells: Sequence[tuple[str, str]], start: int, known: Mapping[str, tuple[int, int]]) -> int:
        """Write the rows of ``cells`` (key, sha256), the first of which is row ``start``; return how many."""
        made: list[tuple[str, bytes]] = []
        rows: list[bytes] = []
        for key, sha256 in cells:
            row = self._shelf.read(known[sha256]) if sha256 in known else None
            if row is None:
                row = square_of(self._context, key, sha256, self._side).tobytes()
                made.append((sha256, row))
            rows.append(row)
        if made:
            self._shelf.append(made)
        data = memoryview(b"".join(rows))
        at = self._begins + start * self._side * self._side * 3
        while data:
            written = os.pwrite(self._file, data, at)
            data, at = data[written:], at + written
        return len(cells)


def pixels_digest(path: Path) -> str:
    """Return the SHA-256 of a pack's file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
