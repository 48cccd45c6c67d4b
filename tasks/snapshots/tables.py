"""Snapshots and their tables: written once, checked against their id at every read, made again when lost.

A table is stored in the store, and a copy of the newest few in the cache. Either must have the content that the
snapshot's id is the digest of.
"""

from __future__ import annotations

import io
import json
import logging
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.local.files import write_atomic
from infra.store.records import content_key
from tasks.context import Context
from tasks.nights import latest_of
from tasks.snapshots.listing import TEXT, batches_of, joined
from validation.digest import digest_of_list
from validation.errors import ObjectMissing
from validation.records import CLASSES, Snapshot

log = logging.getLogger(__name__)

ROWS = pa.schema(
    [
        ("key", TEXT),
        ("size", pa.int64()),
        ("etag", TEXT),
        ("sha256", TEXT),
        ("label", TEXT),
        ("patient", TEXT),
        ("first_seen", TEXT),
        ("problem", TEXT),
    ]
)
# Without ETags and times: the same images are the same snapshot in any store, on any day.
_NAMED_BY = ["key", "size", "sha256", "label", "patient", "problem"]
COPIES = 7


def snapshot_id(rows: pa.RecordBatch) -> str:
    """Return the name of a snapshot with these rows, sorted by key."""
    chosen = rows.select(_NAMED_BY)
    return digest_of_list(lambda: (list(zip(*b.to_pydict().values(), strict=True)) for b in batches_of(chosen)))


def latest(context: Context) -> Snapshot | None:
    """Return the snapshot of the last pull, or the newest one where the pointer to it is damaged or lost."""
    return latest_of(context, "snapshot", Snapshot, lambda snapshot: snapshot.created_at)


def find(context: Context, id_: str) -> Snapshot | None:
    """Return a stored snapshot; None when there is none, or a damaged one, which is written again."""
    return context.records.find(Snapshot, id_)


def rows_of(context: Context, snapshot: Snapshot) -> pa.RecordBatch | None:
    """Return a snapshot's rows (schema ``ROWS``): from the store, else from the cache's copy, which repairs the store.

    None when neither has them.
    """
    store = context.store
    try:
        rows, why = _sound(store.get(snapshot.table), snapshot.id), "has other rows than it is named after"
    except ObjectMissing:
        rows, why = None, "is gone"
    if rows is not None:
        return rows
    log.warning("the table of snapshot %s in %s %s", snapshot.id, store.uri, why)
    path = _copy(context, snapshot.id)
    if path.is_file() and (rows := _sound(data := path.read_bytes(), snapshot.id)) is not None:
        log.warning("it is written again from the copy %s", path)
        store.put(snapshot.table, data)
    return rows


def save(
    context: Context, rows: pa.RecordBatch, id_: str, *, before: pa.RecordBatch | None, parent: Snapshot | None
) -> Snapshot:
    """Store rows (schema ``ROWS``, sorted by key) as a snapshot and return it."""
    usable = pc.not_equal(rows["sha256"], "")
    patients = rows["patient"].filter(usable)
    gone, same = 0, 0
    if before is not None:
        at = pc.index_in(rows["key"], value_set=before["key"])
        gone = before.num_rows - (len(at) - at.null_count)
        same = _count(pc.equal(pc.take(before["sha256"], at), rows["sha256"]))
    snapshot = Snapshot(
        id=id_,
        parent=parent.id if parent else None,
        table=save_table(context, rows, id_),
        objects=rows.num_rows,
        bytes=pc.sum(rows["size"]).as_py() or 0,
        by_class={label: _count(pc.and_(usable, pc.equal(rows["label"], label))) for label in CLASSES},
        patients=len(pc.unique(patients.filter(pc.not_equal(patients, "")))),
        without_patient=_count(pc.equal(patients, "")),
        new=rows.num_rows - same,
        gone=gone,
        created_at=datetime.now(UTC),
    )
    return context.records.save_once(snapshot, id_)


def save_table(context: Context, rows: pa.RecordBatch, id_: str, key: str | None = None) -> str:
    """Store the rows of a snapshot and keep a copy; return the key, by default one with the table's digest.

    Two machines may have seen the same rows at different times.
    """
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_batches([rows]), buffer, compression="zstd")
    data = buffer.getvalue()
    key = key or content_key(Snapshot, id_, "objects", data)
    context.store.put(key, data)
    path = _copy(context, id_)
    write_atomic(path, data)
    by_age = sorted(path.parent.glob("*.parquet"), key=lambda copy: copy.stat().st_mtime)
    for old in by_age[:-COPIES]:
        old.unlink(missing_ok=True)
    return key


def _copy(context: Context, id_: str) -> Path:
    return context.workspace.home / "cache" / "snapshots" / f"{id_}.parquet"


def _sound(data: bytes, id_: str) -> pa.RecordBatch | None:
    """Return the rows of a Parquet file if they are those that ``id_`` names."""
    try:
        table = pq.read_table(io.BytesIO(data), columns=ROWS.names)
        rows = joined(table.cast(ROWS).to_batches(), ROWS)
        return rows if snapshot_id(rows) == id_ else None
    except (pa.ArrowException, OSError, ValueError, KeyError, json.JSONDecodeError):
        return None


def _count(mask: pa.Array) -> int:
    return int(pc.sum(mask).as_py() or 0)
