"""Tables in parts, so that a night writes what is new in them and not all of them again.

A table is a manifest, which names parts: Parquet files under ``retraining/parts/``, each named by the SHA-256 of its
bytes and never changed. A table that is saved after another keeps the parts of that one; rows that are no longer in it
are marked in the manifest, and new ones are a part of their own. Parts are gathered like the levels of a log-structured
merge tree (O'Neil et al. 1996, Acta Informatica 33:351): as soon as 16 have a similar size they become one, so that a
row is written at most once for each power of 16, and a table of a million rows has some tens of parts.

A part is read only if its bytes have the digest that it is named after, and a manifest likewise: what was damaged is
never read as something else.
"""

from __future__ import annotations

import base64
import hashlib
import io
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from infra.store.base import Store
from infra.store.keys import part_key
from validation.errors import ObjectMissing, RetrainError

THREADS = 16
# As many parts of one size become one; the largest have FANOUT**4 rows, so that one at a time fits into memory.
FANOUT, MOST = 16, 16**4
# A part is written again without the rows that are gone when they are more than this share of it.
GONE_SHARE = 0.25


class Part(BaseModel):
    """A part: the digest of its bytes, its rows, and which of them are gone (a packed bitmap; empty: none)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    rows: int = Field(ge=0)
    gone: str = ""

    @property
    def level(self) -> int:
        """The power of ``FANOUT`` that its rows reach."""
        return _level(self.rows)

    def living(self) -> npt.NDArray[np.bool_]:
        """Return which rows count, bool [rows]."""
        if not self.gone:
            return np.ones(self.rows, bool)
        bits = np.frombuffer(zlib.decompress(base64.b64decode(self.gone)), np.uint8)
        return ~np.unpackbits(bits, count=self.rows).astype(bool)

    def with_living(self, living: npt.NDArray[np.bool_]) -> Part:
        """Return the same part, of which these rows count."""
        packed = "" if living.all() else base64.b64encode(zlib.compress(np.packbits(~living).tobytes(), 9)).decode()
        return self.model_copy(update={"gone": packed})


class Manifest(BaseModel):
    """What a table in parts consists of, and the columns by which its rows are sorted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: tuple[str, ...]
    parts: tuple[Part, ...]

    def part_keys(self) -> set[str]:
        """Return the keys of its parts."""
        return {part_key(part.sha256) for part in self.parts}


@dataclass
class _Kept:
    """A part of the table before, and which of its rows the new table has, at which positions there."""

    part: Part
    living: npt.NDArray[np.bool_]
    positions: npt.NDArray[np.int64]

    @property
    def is_worth_keeping(self) -> bool:
        living = int(np.count_nonzero(self.living))
        return living > 0 and living >= (1 - GONE_SHARE) * self.part.rows


def save(
    store: Store, table: pa.Table, by: Sequence[str], before: Manifest | None
) -> tuple[Manifest, dict[str, bytes]]:
    """Store the parts that a table has and ``before`` has not; return its manifest, and what was written, by key.

    ``by``: text columns by which the table is sorted, and which name each row. Of ``before`` what cannot be read is not
    used again: its rows are written as if they were new.
    """
    table = table.combine_chunks()
    fresh = np.ones(table.num_rows, bool)
    kept = []
    for found in _found(store, table, by, before.parts if before else ()):
        if found.is_worth_keeping:
            kept.append(found)
            fresh[found.positions] = False
    while alike := _to_gather(kept, int(np.count_nonzero(fresh)) % MOST):
        kept = [found for found in kept if found not in alike]
        for found in alike:
            fresh[found.positions] = True
    parts = [found.part.with_living(found.living) for found in kept]
    written: dict[str, bytes] = {}
    # Even an empty table has a part, which says what its columns are.
    for rows in _pieces(table, fresh) if fresh.any() or not parts else ():
        data = parquet_bytes(rows)
        part = Part(sha256=hashlib.sha256(data).hexdigest(), rows=rows.num_rows)
        if _sound(store, part) is None:  # a night that was killed has written it
            store.put(part_key(part.sha256), data)
        written[part_key(part.sha256)] = data
        parts.append(part)
    return Manifest(by=tuple(by), parts=tuple(parts)), written


def load(store: Store, manifest: Manifest) -> pa.Table:
    """Return a table as it was saved.

    Raises:
        RetrainError: for a part that is damaged; ObjectMissing for one that is gone.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        pieces = list(pool.map(lambda part: _living_rows(store, part), manifest.parts))
    table = pa.concat_tables(pieces)
    del pieces
    return table if len(manifest.parts) == 1 else table.sort_by([(name, "ascending") for name in manifest.by])


def _living_rows(store: Store, part: Part) -> pa.Table:
    key = part_key(part.sha256)
    if (data := _sound(store, part)) is None:
        if not store.exists(key):
            raise ObjectMissing(f"no part {key} in {store.uri}", "it was deleted, or another store wrote the table")
        raise RetrainError(f"the part {key} in {store.uri} is damaged", "restore it from a backup")
    table = _table_of(data)
    return table.filter(pa.array(part.living())) if part.gone else table


def _sound(store: Store, part: Part) -> bytes | None:
    """Return a part's bytes; None where they are gone, or not those that it is named after."""
    try:
        data = store.get(part_key(part.sha256))
    except ObjectMissing:
        return None
    return data if hashlib.sha256(data).hexdigest() == part.sha256 else None


def _pieces(table: pa.Table, fresh: npt.NDArray[np.bool_]) -> Iterator[pa.Table]:
    rows = table if fresh.all() else table.filter(pa.array(fresh))
    return (rows.slice(start, MOST) for start in range(0, max(rows.num_rows, 1), MOST))


def parquet_bytes(table: pa.Table) -> bytes:
    """Return a table as a Parquet file; same table, same bytes."""
    data = io.BytesIO()
    # A flipped bit would otherwise be read as another value.
    pq.write_table(table, data, compression="zstd", write_page_checksum=True)
    return data.getvalue()


def _table_of(data: bytes) -> pa.Table:
    return pq.ParquetFile(io.BytesIO(data)).read(use_threads=False).combine_chunks()


def _found(store: Store, table: pa.Table, by: Sequence[str], parts: Sequence[Part]) -> Iterator[_Kept]:
    """Yield the parts that can be read and have the table's columns, with what of them is in the table."""
    if not parts or not table.num_rows:
        return
    hashes = _hashes(table, by)
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    taken = np.zeros(table.num_rows, bool)
    for part in parts:
        if (data := _sound(store, part)) is None:
            continue
        rows = _table_of(data)
        if not rows.schema.equals(table.schema):
            continue
        places = order[np.minimum(np.searchsorted(hashes, _hashes(rows, by)), len(hashes) - 1)]
        same = np.flatnonzero(part.living() & _equal(table, places, rows) & ~taken[places])
        same = same[np.sort(np.unique(places[same], return_index=True)[1])]  # of equal rows one is enough
        living = np.zeros(part.rows, bool)
        living[same] = True
        taken[places[same]] = True
        yield _Kept(part, living, places[same])


def _hashes(table: pa.Table, by: Sequence[str]) -> npt.NDArray[np.uint64]:
    """Return a hash of the columns ``by`` of each row, uint64 [n]. Rows with the same hash are still compared whole."""
    hashes = np.zeros(table.num_rows, np.uint64)
    for start in range(0, table.num_rows, MOST):
        part = hashes[start : start + MOST]
        for name in by:
            part *= np.uint64(0x9E3779B97F4A7C15)
            part += pd.util.hash_array(table[name].slice(start, MOST).to_numpy().astype(object), categorize=False)
    return hashes


def _equal(table: pa.Table, places: npt.NDArray[np.int64], rows: pa.Table) -> npt.NDArray[np.bool_]:
    """Return whether each of ``rows`` is, in all columns, the row of ``table`` at its place."""
    equal = np.ones(rows.num_rows, bool)
    at = pa.array(places)
    for name in table.column_names:
        one, other = table[name].take(at), rows[name]
        same = pc.or_kleene(pc.equal(one, other), pc.and_(pc.is_null(one), pc.is_null(other)))
        equal &= pc.fill_null(same, False).to_numpy()
    return equal


def _level(rows: int) -> int:
    return (max(rows, 1).bit_length() - 1) // (FANOUT.bit_length() - 1)


def _to_gather(kept: Sequence[_Kept], left: int) -> list[_Kept]:
    """Return the parts that a new one of ``left`` rows makes too many of one size; none where it does not."""
    alike = [found for found in kept if left and found.part.rows < MOST and found.part.level == _level(left)]
    return alike if len(alike) >= FANOUT - 1 else []
