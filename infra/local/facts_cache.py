"""Small texts kept by content in one file on this machine; all of it can be lost and is made again."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import TracebackType

_LOOKED_UP_AT_ONCE = 500


class FactsCache:
    """Texts by digest, in SQLite: a few hundred bytes an image, found by the thousand in milliseconds.

    Every text has a checksum, and a file that SQLite finds damaged is begun anew: what rotted is never believed.
    Without fsync: a power cut costs the file, and the file costs nothing but time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._connection = self._open()
        except sqlite3.DatabaseError:
            self._start_anew()

    def get(self, digests: Iterable[str]) -> dict[str, str]:
        """Return the texts that are kept, by digest (hex)."""
        wanted = list(digests)
        try:
            return self._get(wanted)
        except sqlite3.OperationalError:
            return {}  # locked for half a minute, or the disk fails: measured again
        except sqlite3.DatabaseError:
            self._connection.close()
            self._start_anew()
            return {}

    def put(self, texts: Mapping[str, str]) -> None:
        """Keep texts by digest; a text that is kept already is replaced."""
        encoded = ((bytes.fromhex(digest), text.encode()) for digest, text in texts.items())
        rows = [(digest, text, zlib.crc32(text)) for digest, text in encoded]
        try:
            with self._connection:
                self._connection.executemany("INSERT OR REPLACE INTO kept VALUES (?, ?, ?)", rows)
        except sqlite3.OperationalError:
            pass  # a full disk, or another process that writes: measured again another time
        except sqlite3.DatabaseError:
            self._connection.close()
            self._start_anew()

    def count(self) -> int:
        """Return how many texts are kept."""
        try:
            return int(self._connection.execute("SELECT count(*) FROM kept").fetchone()[0])
        except sqlite3.DatabaseError:
            return 0

    def stale(self, living: Collection[str]) -> list[str]:
        """Return the digests of all texts whose digest is not among ``living``."""
        try:
            found = [row[0].hex() for row in self._connection.execute("SELECT digest FROM kept")]
        except sqlite3.DatabaseError:
            return []  # what is damaged is begun anew by whoever asks for a text
        return [digest for digest in found if digest not in living]

    def drop(self, digests: Iterable[str]) -> None:
        """Forget texts, and give their room back to the disk."""
        try:
            with self._connection:
                self._connection.executemany(
                    "DELETE FROM kept WHERE digest = ?", ((bytes.fromhex(d),) for d in digests)
                )
            self._connection.execute("VACUUM")
        except sqlite3.DatabaseError:
            pass  # a full disk: another time

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def __enter__(self) -> FactsCache:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _get(self, wanted: list[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for start in range(0, len(wanted), _LOOKED_UP_AT_ONCE):
            some = [bytes.fromhex(digest) for digest in wanted[start : start + _LOOKED_UP_AT_ONCE]]
            marks = ",".join("?" * len(some))
            rows = self._connection.execute(f"SELECT digest, text, crc FROM kept WHERE digest IN ({marks})", some)  # noqa: S608
            found |= {digest.hex(): text.decode() for digest, text, crc in rows if _fits(text, crc)}
        return found

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=30)
        try:
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS kept (digest BLOB PRIMARY KEY, text BLOB, crc INTEGER) WITHOUT ROWID"
            )
        except sqlite3.DatabaseError:
            connection.close()
            raise
        return connection

    def _start_anew(self) -> None:
        self.path.unlink(missing_ok=True)
        self.path.with_name(f"{self.path.name}-journal").unlink(missing_ok=True)
        self._connection = self._open()


def _fits(text: object, crc: object) -> bool:
    return isinstance(text, bytes) and zlib.crc32(text) == crc
