"""The journal of a pull: notes what was fetched, a line an object, so that a killed pull need not fetch it again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

import pyarrow as pa

from infra.local.files import WRITE_HINT, write_atomic
from infra.store.base import ObjectInfo
from tasks.snapshots.listing import TEXT, batches_of
from validation.errors import RetrainError

NOTED = pa.schema([("key", TEXT), ("size", pa.int64()), ("etag", TEXT), ("sha256", TEXT)])


class Journal:
    """Key, size, ETag and SHA-256 of what was fetched since the last snapshot; bounded by ``compact``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1

    def __enter__(self) -> Journal:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            # What a kill tore must not take the next line with it.
            os.write(self._file, b"\n")
        except OSError as error:
            raise self._cannot_write(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def note(self, fetched: Iterable[tuple[ObjectInfo, str]]) -> None:
        """Note what was fetched, and the SHA-256 of each. One write: threads never mix their lines.

        Raises:
            RetrainError: when the disk is full.
        """
        lines = b"".join(
            json.dumps([info.key, info.size, info.etag, sha256]).encode() + b"\n" for info, sha256 in fetched
        )
        try:
            if os.write(self._file, lines) != len(lines):
                raise OSError(None, "No space left on device")
        except OSError as error:
            raise self._cannot_write(error) from error

    def read(self) -> pa.RecordBatch:
        """Return all that was noted, the last note of each key: schema ``NOTED``."""
        notes = dict(self._notes())
        rows = [(key, *note) for key, note in notes.items()]
        columns = zip(*rows, strict=True) if rows else [[]] * len(NOTED)
        return pa.RecordBatch.from_arrays(
            [pa.array(column, field.type) for column, field in zip(columns, NOTED, strict=True)], schema=NOTED
        )

    def compact(self, rows: pa.RecordBatch) -> None:
        """Keep the notes in ``rows`` only: a snapshot holds all others."""
        if rows.num_rows == 0:
            self._path.unlink(missing_ok=True)
            return
        notes = (
            note
            for batch in batches_of(rows.select(NOTED.names))
            for note in zip(*batch.to_pydict().values(), strict=True)
        )
        write_atomic(self._path, b"".join(json.dumps(list(note)).encode() + b"\n" for note in notes))

    def _notes(self) -> Iterator[tuple[str, tuple[int, str, str]]]:
        if not self._path.exists():
            return
        with self._path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    key, size, etag, sha256 = json.loads(line)
                    # Looked at closely: a torn or rotten line must not reach a snapshot.
                    if isinstance(key, str) and isinstance(size, int) and isinstance(etag, str) and len(sha256) == 64:
                        yield key, (size, etag, sha256)
                except (ValueError, TypeError):
                    continue  # torn by a kill: that object is fetched again

    def _cannot_write(self, error: OSError) -> RetrainError:
        return RetrainError(f"cannot write {self._path}: {error.strerror or error}", WRITE_HINT)
