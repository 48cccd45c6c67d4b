"""The journal of a pull: one line for each fetched object, so that a pull that was killed need not fetch it again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from infra.local.files import WRITE_HINT, write_atomic
from infra.store.base import ObjectInfo
from tasks.snapshots.listing import TEXT, batches_of
from validation.errors import RetrainError

NOTED = pa.schema([("key", TEXT), ("size", pa.int64()), ("etag", TEXT), ("sha256", TEXT)])


class Journal:
    """Key, size, ETag and SHA-256 of what was fetched since the last snapshot; ``compact`` keeps it small."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Journal:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = self._path.open("ab", buffering=0)
            # A line that a kill tore must not take the next one with it.
            self._file.write(b"\n")
        except OSError as error:
            raise self._cannot_write(error) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def note(self, fetched: Iterable[tuple[ObjectInfo, str]]) -> None:
        """Note what was fetched, and the SHA-256 of each, in one write, so that threads do not mix their lines.

        Raises:
            RetrainError: when the disk is full.
        """
        lines = _as_lines((info.key, info.size, info.etag, sha256) for info, sha256 in fetched)
        try:
            if self._file.write(lines) != len(lines):
                raise OSError(None, "No space left on device")
        except OSError as error:
            raise self._cannot_write(error) from error

    def read(self) -> pa.RecordBatch:
        """Return all notes, the last one of each key: schema ``NOTED``."""
        rows = list({note[0]: note for note in self._notes()}.values())
        columns = zip(*rows, strict=True) if rows else [[]] * len(NOTED)
        return pa.RecordBatch.from_pydict(dict(zip(NOTED.names, columns, strict=True)), schema=NOTED)

    def compact(self, rows: pa.RecordBatch) -> None:
        """Keep the notes in ``rows`` only: a snapshot has all others."""
        if rows.num_rows == 0:
            self._path.unlink(missing_ok=True)
            return
        batches = batches_of(rows.select(NOTED.names))
        write_atomic(self._path, b"".join(_as_lines(zip(*b.to_pydict().values(), strict=True)) for b in batches))

    def _notes(self) -> Iterator[tuple[str, int, str, str]]:
        if not self._path.exists():
            return
        with self._path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    key, size, etag, sha256 = json.loads(line)
                    # Checked, since a torn or rotten line must not reach a snapshot.
                    if isinstance(key, str) and isinstance(size, int) and isinstance(etag, str) and len(sha256) == 64:
                        yield key, size, etag, sha256
                except (ValueError, TypeError):
                    continue  # torn by a kill: that object is fetched again

    def _cannot_write(self, error: OSError) -> RetrainError:
        return RetrainError(f"cannot write {self._path}: {error.strerror or error}", WRITE_HINT)


def _as_lines(notes: Iterable[tuple[object, ...]]) -> bytes:
    return b"".join(json.dumps(note).encode() + b"\n" for note in notes)
