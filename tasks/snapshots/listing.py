"""The listing of a store as columns: a million keys fit into memory as columns, and not as Python objects."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc

from infra.settings.settings import Settings
from infra.store.base import ObjectInfo
from infra.store.keys import LABELED, is_junk, parse_labeled
from tasks.context import Context
from validation.patients import patient_of
from validation.records import CLASSES

TEXT = pa.large_string()
LISTED = pa.schema(
    [("key", TEXT), ("size", pa.int64()), ("etag", TEXT), ("label", TEXT), ("patient", TEXT), ("problem", TEXT)]
)
CHUNK = 10_000


def list_cells(context: Context) -> pa.RecordBatch:
    """Return everything under ``labeled/``, one row for each key, sorted by key: schema ``LISTED``.

    Raises:
        StoreUnreachable: when the store does not answer.
    """
    infos, settings = context.store.list(LABELED), context.settings
    chunks = []
    while rows := [_row(info, settings) for info in islice(infos, CHUNK)]:
        columns = dict(zip(LISTED.names, zip(*rows, strict=True), strict=True))
        chunks.append(pa.RecordBatch.from_pydict(columns, schema=LISTED))
    return _sorted_once(joined(chunks, LISTED))


def joined(chunks: list[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatch:
    """Return all chunks as one, whose columns are whole arrays."""
    batches = pa.Table.from_batches(chunks, schema).combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=schema)


def batches_of(rows: pa.RecordBatch, size: int = CHUNK) -> Iterator[pa.RecordBatch]:
    """Yield rows in pieces small enough to become Python objects."""
    return (rows.slice(start, size) for start in range(0, rows.num_rows, size))


def _sorted_once(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Return rows sorted by key, the last of each key: a bucket that changes between two pages may list one twice."""
    keys = rows["key"]
    if len(keys) < 2 or pc.all(pc.less(keys[:-1], keys[1:])).as_py():
        return rows
    rows = rows.take(pc.sort_indices(keys))  # stable
    is_last = pa.concat_arrays([pc.not_equal(rows["key"][1:], rows["key"][:-1]), pa.array([True])])
    return rows.filter(is_last)


def _row(info: ObjectInfo, settings: Settings) -> tuple[str, int, str, str, str, str]:
    key = info.key
    if not key.isascii():
        # Lone halves of surrogate pairs cannot be stored as text; a key with one is odd, and is shown escaped.
        key = key.encode("utf-8", "backslashreplace").decode()
    parsed = parse_labeled(info.key)
    folder = parsed.label if parsed else ""
    label = settings.classes.get(folder, folder if folder in CLASSES else "")
    patient = patient_of(parsed.name, settings.data.patient_pattern) if parsed else None
    if is_junk(info.key):
        problem = "junk file"
    elif parsed is None:
        problem = "odd key"
    elif not label:
        problem = "unknown class"
    else:
        problem = "too many bytes" if info.size > settings.data.max_bytes else ""
    return key, info.size, info.etag, label, patient or "", problem
