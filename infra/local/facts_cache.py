"""A cache of short texts by digest, in one file on this machine; losing it costs only time."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

_LOOKED_UP_AT_ONCE = 500


class FactsCache:
    """Texts by digest, in SQLite: a few hundred bytes per image, thousands read in milliseconds.

    Every text has a checksum, and a file that SQLite finds damaged is replaced by an empty one. No fsync: a power cut
    may cost the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._connection = self._open()
        except sqlite3.DatabaseError:
            self._recreate()

    def get(self, digests: Iterable[str]) -> dict[str, str]:
        """Return the cached texts, by digest (hex)."""
        wanted = list(digests)
        try:
            return self._get(wanted)
        except sqlite3.OperationalError:
            return {}  # locked for half a minute, or a disk error: measure again
        except sqlite3.DatabaseError:
            self._recreate()
            return {}

    def put(self, texts: Mapping[str, str]) -> None:
        """Cache texts by digest, replacing older ones."""
        encoded = ((bytes.fromhex(digest), text.encode()) for digest, text in texts.items())
        rows = [(digest, text, zlib.crc32(text)) for digest, text in encoded]
        try:
            with self._connection:
                self._connection.executemany("INSERT OR REPLACE INTO kept VALUES (?, ?, ?)", rows)
        except sqlite3.OperationalError:
            pass  # a full disk, or another process is writing: measured again another time
        except sqlite3.DatabaseError:
            self._recreate()

    def count(self) -> int:
        """Return the number of texts."""
        try:
            return int(self._connection.execute("SELECT count(*) FROM kept").fetchone()[0])
        except sqlite3.DatabaseError:
            return 0

    def stale(self, living: Collection[str]) -> list[str]:
        """Return the digests of all texts that are not among ``living``."""
        try:
            digests = [row[0].hex() for row in self._connection.execute("SELECT digest FROM kept")]
        except sqlite3.DatabaseError:
            return []  # ``get`` replaces a damaged file
        return [digest for digest in digests if digest not in living]

    def drop(self, digests: Iterable[str]) -> None:
        """Remove texts, and return their space to the disk."""
        try:
            with self._connection:
                self._connection.executemany(
                    "DELETE FROM kept WHERE digest = ?", ((bytes.fromhex(d),) for d in digests)
                )
            self._connection.execute("VACUUM")
        except sqlite3.DatabaseError:
            pass  # a full disk: the next pruning tries again

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> FactsCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _get(self, wanted: list[str]) -> dict[str, str]:
        texts: dict[str, str] = {}
        for start in range(0, len(wanted), _LOOKED_UP_AT_ONCE):
            batch = [bytes.fromhex(digest) for digest in wanted[start : start + _LOOKED_UP_AT_ONCE]]
            marks = ",".join("?" * len(batch))
            rows = self._connection.execute(f"SELECT digest, text, crc FROM kept WHERE digest IN ({marks})", batch)  # noqa: S608
            for digest, text, crc in rows:
                if isinstance(text, bytes) and zlib.crc32(text) == crc:
                    texts[digest.hex()] = text.decode()
        return texts

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

    def _recreate(self) -> None:
        if hasattr(self, "_connection"):
            self._connection.close()
        self.path.unlink(missing_ok=True)
        self.path.with_name(f"{self.path.name}-journal").unlink(missing_ok=True)
        self._connection = self._open()
