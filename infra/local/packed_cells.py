"""Rows of equal size kept by digest in two files that only grow: cells that were packed once are not packed again.

``rows.bin`` holds the rows one after another, ``index.bin`` an entry for each: SHA-256 of what the row was made from
and a checksum of the row. An entry is written after its row, and a row is believed only if it fits its checksum: so a
torn write, a truncated file or a rotted byte costs the rows it hit, which are made again.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import threading
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from types import TracebackType

from validation.errors import RetrainError

_ENTRY = struct.Struct(">32sI")
_READ_AT_ONCE = 1 << 16
_MOVED_AT_ONCE = 256


class PackedCellCache:
    """Rows of ``row_bytes`` by digest, in the folder ``path``. Safe for several threads and processes."""

    def __init__(self, path: Path, row_bytes: int) -> None:
        self._row_bytes = row_bytes
        self._lock = threading.Lock()
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._rows = os.open(path / "rows.bin", os.O_RDWR | os.O_CREAT, 0o644)
            self._index = os.open(path / "index.bin", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise _cannot_write(path, error) from error
        self._path = path

    def find(self, digests: Collection[str]) -> dict[str, tuple[int, int]]:
        """Return place and checksum of those ``digests`` that are there; the newest where there are several."""
        wanted = {bytes.fromhex(digest): digest for digest in digests}
        found: dict[str, tuple[int, int]] = {}
        entries = self._entries()
        for start in range(0, entries, _READ_AT_ONCE):
            size = min(_READ_AT_ONCE, entries - start) * _ENTRY.size
            block = os.pread(self._index, size, start * _ENTRY.size)
            for place, (digest, crc) in enumerate(_ENTRY.iter_unpack(block), start):
                if digest in wanted:
                    found[wanted[digest]] = place, crc
        return found

    def read(self, where: tuple[int, int]) -> bytes | None:
        """Return a row that ``find`` named, or None when it is not whole."""
        place, crc = where
        row = os.pread(self._rows, self._row_bytes, place * self._row_bytes)
        return row if len(row) == self._row_bytes and zlib.crc32(row) == crc else None

    def append(self, rows: Sequence[tuple[str, bytes]]) -> None:
        """Keep rows by digest.

        Raises:
            RetrainError: when the disk is full or the folder cannot be written.
        """
        data = b"".join(row for _, row in rows)
        entries = b"".join(_ENTRY.pack(bytes.fromhex(digest), zlib.crc32(row)) for digest, row in rows)
        with self._lock:
            try:
                fcntl.flock(self._index, fcntl.LOCK_EX)
                place = self._entries()
                _write(self._rows, data, place * self._row_bytes)
                # What is left of an entry that was torn is written over.
                _write(self._index, entries, place * _ENTRY.size)
            except OSError as error:
                raise _cannot_write(self._path, error) from error
            finally:
                fcntl.flock(self._index, fcntl.LOCK_UN)

    @property
    def rows(self) -> int:
        """How many rows there are, older copies counted."""
        return self._entries()

    def stale(self, living: Collection[str]) -> int:
        """Return how many rows are of no digest in ``living``, or are another's older copy."""
        return self._entries() - len(self.find(living))

    def move_to(self, target: PackedCellCache, living: Collection[str]) -> None:
        """Append the rows of ``living`` that are whole to another shelf."""
        places = sorted(self.find(living).items(), key=lambda item: item[1])
        for start in range(0, len(places), _MOVED_AT_ONCE):
            some = ((digest, self.read(where)) for digest, where in places[start : start + _MOVED_AT_ONCE])
            target.append([(digest, row) for digest, row in some if row is not None])

    def close(self) -> None:
        """Let go of the files."""
        os.close(self._rows)
        os.close(self._index)

    def __enter__(self) -> PackedCellCache:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _entries(self) -> int:
        return os.fstat(self._index).st_size // _ENTRY.size


def _write(file: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, at)
        view, at = view[written:], at + written


def _cannot_write(path: Path, error: OSError) -> RetrainError:
    return RetrainError(
        f"cannot write to {path}: {error.strerror or error}",
        "free some space, check the owner and mode of the folder, or choose another RETRAIN_HOME",
    )


def clear_shelf(path: Path, row_bytes: int, living: Collection[str]) -> None:
    """Write a shelf anew with the rows of ``living`` alone. Killed half-way it is there as it was, or not at all.

    Nobody else may have it open.

    Raises:
        RetrainError: when the disk is full; the shelf is as it was.
    """
    new = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    old = path.with_name(f".tmp-{os.getpid()}-{path.name}-old")
    try:
        with PackedCellCache(path, row_bytes) as shelf, PackedCellCache(new, row_bytes) as target:
            shelf.move_to(target, living)
        path.replace(old)
        new.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
