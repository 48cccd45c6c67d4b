"""Snapshots and their tables: written once, checked against their id at every read, made again when lost.

A table is stored in the store, and a copy of the newest few in the cache, object by object. Either must have the
content that the snapshot's id is the digest of.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from infra.local.files import write_atomic
from infra.store.keys import MANIFEST, TABLE, part_key
from infra.store.parts import Manifest
from infra.store.records import is_named_after
from tasks.context import Context
from tasks.nights import latest_of
from tasks.snapshots.listing import TEXT, batches_of, joined
from validation.digest import digest_of_list, sha256
from validation.errors import RetrainError, Unreachable
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
    """Return a snapshot's rows (schema ``ROWS``): from the store, which is repaired from the cache's copy if need be.

    None when neither has them.
    """
    if (rows := _sound(context, snapshot)) is None and _put_back(context, snapshot.table):
        log.warning("the table of snapshot %s is written again from its copy", snapshot.id)
        rows = _sound(context, snapshot)
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
        table=save_table(context, rows, id_, before=parent),
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


def save_table(context: Context, rows: pa.RecordBatch, id_: str, *, before: Snapshot | None) -> str:
    """Store the rows of a snapshot, as far as ``before`` has them not, and keep a copy; return their key.

    It has the table's digest: two machines may have seen the same rows at different times.
    """
    table = pa.Table.from_batches([rows])
    last = before.table if before else None
    key = context.records.save_table(
        Snapshot, id_, "objects", table, by=["key"], before=last,
        keep=lambda name, data: write_atomic(_copy(context, name), data),
    )  # fmt: skip
    _drop_old_copies(_copy(context, key).parent)
    return key


def _copy(context: Context, key: str) -> Path:
    return context.workspace.home / "cache" / "snapshots" / key.rpartition("/")[2]


def _drop_old_copies(folder: Path) -> None:
    """Keep the copies of the newest few tables, and the parts that they name."""
    copies = [path for path in folder.iterdir() if path.suffix in (TABLE, MANIFEST)]
    whole = sorted((path for path in copies if "." in path.stem), key=lambda copy: copy.stat().st_mtime)[-COPIES:]
    needed = {path.name for path in whole}
    for path in whole:
        if path.suffix == MANIFEST and is_named_after(path.name, data := path.read_bytes()):
            needed |= {key.rpartition("/")[2] for key in Manifest.model_validate_json(data).part_keys()}
    for path in copies:
        if path.name not in needed:
            path.unlink(missing_ok=True)


def _put_back(context: Context, key: str) -> bool:
    """Write the objects of a table again of which the cache has whole copies; return whether there were any."""
    found = False
    for name in (key, *_parts_of(context, key)):
        path = _copy(context, name)
        if path.is_file() and _is_whole(name, data := path.read_bytes()):
            context.store.put(name, data)
            found = True
    return found


def _parts_of(context: Context, key: str) -> Iterator[str]:
    """Yield the keys of a table's parts; none for a table in one file. Called when the table itself was put back."""
    if key.endswith(MANIFEST):
        try:
            yield from sorted(context.records.load_manifest(key).part_keys())
        except Unreachable:
            raise
        except RetrainError as error:
            log.warning("%s", error.message)


def _is_whole(key: str, data: bytes) -> bool:
    return key == part_key(sha256(data)) or is_named_after(key, data)


def _sound(context: Context, snapshot: Snapshot) -> pa.RecordBatch | None:
    """Return the rows of a snapshot's table if they are those that it is named after."""
    try:
        rows = joined(context.records.load_rows(snapshot.table).select(ROWS.names).cast(ROWS).to_batches(), ROWS)
        if snapshot_id(rows) == snapshot.id:
            return rows
        why = f"{snapshot.table} has other rows than its snapshot is named after"
    except Unreachable:
        raise
    except (RetrainError, pa.ArrowException, ValueError, KeyError, json.JSONDecodeError) as error:
        why = error.message if isinstance(error, RetrainError) else f"{snapshot.table}: {error}"
    log.warning("%s", why)
    return None


def _count(mask: pa.Array) -> int:
    return int(pc.sum(mask).as_py() or 0)
