"""Pull: list the store, compare with what is known, fetch what is new, write an immutable snapshot.

An object whose key, size and ETag are known is not fetched again. Each fetched object is noted, so a pull that was
killed resumes where it stopped. Rows are columns here (pyarrow), so that a million of them fit into memory.
"""

from __future__ import annotations

import logging
from collections import Counter
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.store.base import ObjectInfo
from infra.store.keys import SNAPSHOT_ASSET
from tasks.context import Context, Progress
from tasks.snapshots import tables as snapshots
from tasks.snapshots.fetch_log import Journal
from tasks.snapshots.fetching import Fetcher, FetchResult
from tasks.snapshots.listing import TEXT, batches_of, list_cells
from tasks.snapshots.tables import ROWS
from tasks.stage import stage
from validation.digest import digest
from validation.errors import DataInvalid
from validation.records import CLASSES, Snapshot

log = logging.getLogger(__name__)


def pull(context: Context) -> Snapshot:
    """Return a snapshot of everything under ``labeled/``.

    Raises:
        StoreUnreachable: when the store does not answer.
        DataInvalid: when there is nothing under ``labeled/``, or a class is missing and other folders are there.
        RetrainError: when the disk is full.
    """
    listed = list_cells(context)
    if listed.num_rows == 0:
        context.store.check()
        raise DataInvalid(
            f"no cells in {context.settings.store}: nothing is stored under labeled/<Class>/",
            f"import cells with `retrain import FOLDER`; the classes are {' and '.join(CLASSES)}",
        )
    _refuse_other_names(context, listed)
    parent = snapshots.latest(context)
    before = snapshots.rows_of(context, parent) if parent else None
    if parent is not None and before is None:
        log.warning("its rows are lost: all objects are fetched again")
    journal = Journal(context.workspace.home / "cache" / f"pulled-{digest(context.store.uri)}.jsonl")
    rows = _with_first_seen(_fetch_new(context, listed, before, journal), before)
    del listed
    snapshot, stored = _snapshot(context, rows, before, parent)
    if snapshot != parent:
        context.records.point("snapshot", snapshot)
    _compact(journal, rows, stored)
    same = parent is not None and parent.id == snapshot.id
    change = "as before" if same else f"{snapshot.new:,} new or changed, {snapshot.gone:,} gone"
    log.info(
        "%s objects (%.1f MB), %s: snapshot %s", f"{snapshot.objects:,}", snapshot.bytes / 1e6, change, snapshot.id
    )
    return snapshot


def _refuse_other_names(context: Context, listed: pa.RecordBatch) -> None:
    """Refuse a store in which a class is missing and other folders are there: a misspelling, or other names."""
    lacking = sorted(set(CLASSES) - set(pc.unique(listed["label"]).to_pylist()))
    others = listed["key"].filter(pc.equal(listed["problem"], "unknown class")).to_pylist()
    if lacking and others:
        folders = Counter(key.split("/")[1] for key in others).most_common(10)
        example = f"{folders[0][0]}={lacking[0]}"
        raise DataInvalid(
            f"no {' and no '.join(lacking)} cells in {context.settings.store}; other folders under labeled/: "
            + ", ".join(f"{name!r} ({count:,} objects)" for name, count in folders),
            f"spell the folders {' and '.join(CLASSES)}, or say what is in them: RETRAIN_CLASSES={example!r}",
        )


def _fetch_new(
    context: Context, listed: pa.RecordBatch, before: pa.RecordBatch | None, journal: Journal
) -> pa.RecordBatch:
    """Return the listed rows with their SHA-256, without those that vanished: ``ROWS`` but for ``first_seen``."""
    sha256 = _repeated("", listed)
    for known in (before, journal.read()):
        if known is not None:
            sha256 = _known(listed, known, otherwise=sha256)
    sha256 = pc.if_else(pc.equal(listed["problem"], ""), sha256, "")
    is_wanted = pc.and_(pc.equal(listed["problem"], ""), pc.equal(sha256, ""))
    wanted = listed.select(["key", "size", "etag"]).filter(is_wanted)
    progress = Progress(log, "pulled", wanted.num_rows)
    fetched = np.zeros(wanted.num_rows, "S64")
    amended: dict[int, FetchResult] = {}
    infos = (ObjectInfo(*values) for b in batches_of(wanted) for values in zip(*b.to_pydict().values(), strict=True))
    with journal:
        for results in Fetcher(context, journal).fetch_all(enumerate(infos)):
            for result in results:
                fetched[result.index] = result.sha256.encode()
                if result.problem or result.changed:
                    amended[result.index] = result
            progress.advance(len(results))
    if any(result.problem == "unreadable" for result in amended.values()):
        context.store.check()  # a store that is gone is an error of the night, not of the object
    sha256 = pc.replace_with_mask(sha256, is_wanted, pa.array(fetched.astype("U64"), TEXT))
    rows = listed.append_column("sha256", sha256)
    return _amended(rows, np.flatnonzero(is_wanted.to_numpy(zero_copy_only=False)), amended)


def _repeated(text: str, rows: pa.RecordBatch) -> pa.Array:
    return pa.array([text], TEXT).take(pa.array(np.zeros(rows.num_rows, np.int64)))


def _known(listed: pa.RecordBatch, known: pa.RecordBatch, *, otherwise: pa.Array) -> pa.Array:
    """Return the SHA-256 of every listed row whose key, size and ETag are all known."""
    at = pc.index_in(listed["key"], value_set=known["key"])
    same = pc.and_(
        pc.equal(pc.take(known["size"], at), listed["size"]), pc.equal(pc.take(known["etag"], at), listed["etag"])
    )
    return pc.if_else(pc.fill_null(same, False), pc.take(known["sha256"], at), otherwise)


def _amended(rows: pa.RecordBatch, wanted: np.ndarray, results: dict[int, FetchResult]) -> pa.RecordBatch:
    """Write into the rows what differs from the listing, and leave out what vanished."""
    if not results:
        return rows
    in_order = [result for _, result in sorted(results.items())]
    mask = np.zeros(rows.num_rows, bool)
    mask[wanted[sorted(results)]] = True
    values = {
        "size": [result.info.size for result in in_order],
        "etag": [result.info.etag for result in in_order],
        "problem": [result.problem for result in in_order],
    }
    for name, replacement in values.items():
        position = rows.schema.get_field_index(name)
        kind = rows.schema.field(name).type
        column = pc.replace_with_mask(rows[name], pa.array(mask), pa.array(replacement, kind))
        rows = rows.set_column(position, name, column)
    return rows.filter(pc.not_equal(rows["problem"], "vanished"))


def _with_first_seen(rows: pa.RecordBatch, before: pa.RecordBatch | None) -> pa.RecordBatch:
    """Return the rows complete (schema ``ROWS``): content that the parent has under this key keeps its first time."""
    seen = _repeated(_now_after(before), rows)
    if before is not None:
        at = pc.index_in(rows["key"], value_set=before["key"])
        same = pc.fill_null(pc.equal(pc.take(before["sha256"], at), rows["sha256"]), False)
        seen = pc.if_else(same, pc.take(before["first_seen"], at), seen)
    return rows.append_column("first_seen", seen).select(ROWS.names)


def _now_after(before: pa.RecordBatch | None) -> str:
    """Return the time, later than any known one: of two equal images the earlier is kept.

    With a clock that was set back, tonight's images would come first and change the cells of patients long known.
    """
    now = datetime.now(UTC)
    if before is not None and before.num_rows:
        now = max(now, datetime.fromisoformat(pc.max(before["first_seen"]).as_py()) + timedelta(milliseconds=1))
    return now.isoformat(timespec="milliseconds")


def _snapshot(
    context: Context, rows: pa.RecordBatch, before: pa.RecordBatch | None, parent: Snapshot | None
) -> tuple[Snapshot, pa.RecordBatch]:
    """Return the snapshot that has these rows, stored if it is new, and its rows as they are stored."""
    id_ = snapshots.snapshot_id(rows)
    if parent is not None and parent.id == id_ and before is not None:
        if snapshots.find(context, id_) is None:  # damaged or lost: the pointer has it too
            context.records.save(parent, id_)
        return parent, before
    stored = snapshots.find(context, id_)
    if stored is None:
        return snapshots.save(context, rows, id_, before=before, parent=parent), rows
    known = snapshots.rows_of(context, stored)
    if known is None:
        stored = stored.model_copy(update={"table": snapshots.save_table(context, rows, id_, before=parent)})
        context.records.save(stored, id_)
    return stored, rows if known is None else known


def _compact(journal: Journal, rows: pa.RecordBatch, stored: pa.RecordBatch | None) -> None:
    """Keep in the journal only what the snapshot's table lacks: the same bytes under another ETag."""
    if stored is None or stored is rows:
        journal.compact(rows.slice(0, 0))
        return
    # Equal ids mean equal keys in the same order.
    journal.compact(rows.filter(pc.and_(pc.not_equal(rows["etag"], stored["etag"]), pc.not_equal(rows["sha256"], ""))))


pull_task = stage(pull, makes=SNAPSHOT_ASSET)
