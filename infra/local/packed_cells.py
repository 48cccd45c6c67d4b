"""A cache of packed cells: rows of equal size by digest, in two files that only grow.

``rows.bin`` contains the rows, ``index.bin`` an entry for each: the SHA-256 of the row's source, that of the row, and a
checksum of both. An entry is written after its row, and a row is used only if the checksum fits: a torn write, a
truncated file or a damaged byte costs only the rows it hit, which are packed again. So the SHA-256 of a row, computed
once, is that of the bytes that are read later, and need not be computed again.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import struct
import threading
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from infra.local.files import WRITE_HINT, write_at
from validation.errors import RetrainError

_ENTRY = struct.Struct(">32sI32s")
_READ_AT_ONCE = 1 << 16
_MOVED_AT_ONCE = 256


class Place(NamedTuple):
    """Where a cached row is, its checksum, and the SHA-256 of its bytes (32 bytes)."""

    number: int
    crc: int
    sha256: bytes


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

    def find(self, digests: Collection[str]) -> dict[str, Place]:
        """Return the places of the rows of ``digests`` that are cached, the newest of each."""
        wanted = {bytes.fromhex(digest): digest for digest in digests}
        places: dict[str, Place] = {}
        for start in range(0, self.rows, _READ_AT_ONCE):
            size = min(_READ_AT_ONCE, self.rows - start) * _ENTRY.size
            block = os.pread(self._index, size, start * _ENTRY.size)
            for number, (digest, crc, row) in enumerate(_ENTRY.iter_unpack(block), start):
                if digest in wanted:
                    places[wanted[digest]] = Place(number, crc, row)
        return places

    def read(self, place: Place) -> bytes | None:
        """Return a row that ``find`` named, or None when it is damaged."""
        row = os.pread(self._rows, self._row_bytes, place.number * self._row_bytes)
        return row if len(row) == self._row_bytes and _checksum(row, place.sha256) == place.crc else None

    def append(self, rows: Sequence[tuple[str, bytes]]) -> None:
        """Cache rows by digest.

        Raises:
            RetrainError: when the disk is full or the folder cannot be written.
        """
        data = b"".join(row for _, row in rows)
        entries = b"".join(_entry(digest, row) for digest, row in rows)
        with self._lock:
            try:
                fcntl.flock(self._index, fcntl.LOCK_EX)
                place = self.rows
                write_at(self._rows, data, place * self._row_bytes)
                # Overwrites the rest of a torn entry.
                write_at(self._index, entries, place * _ENTRY.size)
            except OSError as error:
                raise _cannot_write(self._path, error) from error
            finally:
                fcntl.flock(self._index, fcntl.LOCK_UN)

    @property
    def rows(self) -> int:
        """Number of rows, older copies included."""
        return os.fstat(self._index).st_size // _ENTRY.size

    def stale(self, living: Collection[str]) -> int:
        """Return the number of rows that are not in ``living``, or are older copies."""
        return self.rows - len(self.find(living))

    def move_to(self, target: PackedCellCache, living: Collection[str]) -> None:
        """Append the undamaged rows of ``living`` to another cache."""
        places = sorted(self.find(living).items(), key=lambda item: item[1])
        for start in range(0, len(places), _MOVED_AT_ONCE):
            batch = ((digest, self.read(where)) for digest, where in places[start : start + _MOVED_AT_ONCE])
            target.append([(digest, row) for digest, row in batch if row is not None])

    def close(self) -> None:
        """Close the files."""
        os.close(self._rows)
        os.close(self._index)

    def __enter__(self) -> PackedCellCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _entry(digest: str, row: bytes) -> bytes:
    sha256 = hashlib.sha256(row).digest()
    return _ENTRY.pack(bytes.fromhex(digest), _checksum(row, sha256), sha256)


def _checksum(row: bytes, sha256: bytes) -> int:
    return zlib.crc32(sha256, zlib.crc32(row))


def _cannot_write(path: Path, error: OSError) -> RetrainError:
    return RetrainError(f"cannot write to {path}: {error.strerror or error}", WRITE_HINT)


def keep_packed_cells(path: Path, row_bytes: int, living: Collection[str]) -> None:
    """Rewrite a cache with the rows of ``living`` alone; if killed half-way, it is unchanged or absent.

    No other process may have it open.

    Raises:
        RetrainError: when the disk is full; the cache is unchanged.
    """
    new = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    old = path.with_name(f".tmp-{os.getpid()}-{path.name}-old")
    try:
        with PackedCellCache(path, row_bytes) as cache, PackedCellCache(new, row_bytes) as target:
            cache.move_to(target, living)
        path.replace(old)
        new.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
