"""Pull: list the store, compare with what is known, fetch what is new, write an immutable snapshot.

An object whose key, size and ETag are known is not fetched again. What was fetched is noted object by object, so a
pull that is killed goes on where it was. Rows are columns here (pyarrow), so that a million of them fit into memory.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.store.base import ObjectInfo
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
        DataInvalid: when there is nothing under ``labeled/``.
        RetrainError: when the disk is full.
    """
    listed = list_cells(context)
    if listed.num_rows == 0:
        context.store.check()
        raise DataInvalid(
            f"no cells in {context.settings.store}: nothing lies under labeled/<Class>/",
            f"put some there with `retrain import FOLDER`; the classes are {' and '.join(CLASSES)}",
        )
    parent = snapshots.latest(context)
    before = snapshots.rows_of(context, parent) if parent else None
    if parent is not None and before is None:
        log.warning("its rows are lost: all objects are fetched again")
    journal = Journal(context.workspace.home / "cache" / f"pulled-{digest(context.store.uri)}.jsonl")
    rows = _with_first_seen(_fetch_new(context, listed, before, journal), before)
    del listed
    snapshot, stored = _snapshot(context, rows, before, parent)
    if parent is None or snapshot != parent:
        context.records.point("snapshot", snapshot)
    _compact(journal, rows, stored)
    _tell(snapshot, parent)
    return snapshot


def _fetch_new(
    context: Context, listed: pa.RecordBatch, before: pa.RecordBatch | None, journal: Journal
) -> pa.RecordBatch:
    """Return the listed rows with their SHA-256 (and without those that vanished): ``ROWS`` but for ``first_seen``."""
    sha256 = pa.array([""], TEXT).take(pa.array(np.zeros(listed.num_rows, np.int64)))
    for known in (before, journal.read()):
        if known is not None:
            sha256 = _known(listed, known, otherwise=sha256)
    sha256 = pc.if_else(pc.equal(listed["problem"], ""), sha256, "")
    is_wanted = pc.and_(pc.equal(listed["problem"], ""), pc.equal(sha256, ""))
    wanted = listed.select(["key", "size", "etag"]).filter(is_wanted)
    progress = Progress(log, "pulled", wanted.num_rows)
    fetched = np.zeros(wanted.num_rows, "S64")
    others: dict[int, FetchResult] = {}
    with journal:
        for outcomes in Fetcher(context, journal).fetch_all(_infos(wanted)):
            for outcome in outcomes:
                fetched[outcome.index] = outcome.sha256.encode()
                if outcome.problem or outcome.changed:
                    others[outcome.index] = outcome
            progress.advance(len(outcomes))
    if any(outcome.problem == "unreadable" for outcome in others.values()):
        context.store.check()  # a store that is gone is an error of the night, not of the object
    rows = listed.append_column("sha256", _replaced(sha256, is_wanted, fetched))
    return _amended(rows, np.flatnonzero(is_wanted.to_numpy(zero_copy_only=False)), others)


def _known(listed: pa.RecordBatch, known: pa.RecordBatch, *, otherwise: pa.Array) -> pa.Array:
    """Return the SHA-256 of every listed row that is known under just this key, size and ETag."""
    at = pc.index_in(listed["key"], value_set=known["key"])
    same = pc.and_(
        pc.equal(pc.take(known["size"], at), listed["size"]), pc.equal(pc.take(known["etag"], at), listed["etag"])
    )
    return pc.if_else(pc.fill_null(same, False), pc.take(known["sha256"], at), otherwise)


def _infos(wanted: pa.RecordBatch) -> Iterator[tuple[int, ObjectInfo]]:
    index = 0
    for batch in batches_of(wanted):
        for values in zip(*batch.to_pydict().values(), strict=True):
            yield index, ObjectInfo(*values)
            index += 1


def _replaced(column: pa.Array, mask: pa.Array, values: np.ndarray) -> pa.Array:
    return pc.replace_with_mask(column, mask, pa.array(values.astype("U64"), TEXT))


def _amended(rows: pa.RecordBatch, wanted: np.ndarray, others: dict[int, FetchResult]) -> pa.RecordBatch:
    """Write into the rows what differs from the listing, and leave out what vanished."""
    if not others:
        return rows
    here = {int(wanted[index]): outcome for index, outcome in sorted(others.items())}
    mask = np.zeros(rows.num_rows, bool)
    mask[list(here)] = True
    values = {
        "size": [outcome.info.size for outcome in here.values()],
        "etag": [outcome.info.etag for outcome in here.values()],
        "problem": [outcome.problem for outcome in here.values()],
    }
    for name, replacement in values.items():
        position = rows.schema.get_field_index(name)
        kind = rows.schema.field(name).type
        column = pc.replace_with_mask(rows[name], pa.array(mask), pa.array(replacement, kind))
        rows = rows.set_column(position, name, column)
    return rows.filter(pc.not_equal(rows["problem"], "vanished"))


def _with_first_seen(rows: pa.RecordBatch, before: pa.RecordBatch | None) -> pa.RecordBatch:
    """Return the rows whole (schema ``ROWS``): content that the parent held under this key was seen when it says."""
    seen = pa.array([_now_after(before)], TEXT).take(pa.array(np.zeros(rows.num_rows, np.int64)))
    if before is not None:
        at = pc.index_in(rows["key"], value_set=before["key"])
        same = pc.fill_null(pc.equal(pc.take(before["sha256"], at), rows["sha256"]), False)
        seen = pc.if_else(same, pc.take(before["first_seen"], at), seen)
    return rows.append_column("first_seen", seen).select(ROWS.names)


def _now_after(before: pa.RecordBatch | None) -> str:
    """Return the time, later than any that is known: of two same images the earlier stays, so a clock must not decide.

    A clock that was set back would let tonight's images come first, and change the cells of patients long known.
    """
    now = datetime.now(UTC)
    if before is not None and before.num_rows:
        now = max(now, datetime.fromisoformat(pc.max(before["first_seen"]).as_py()) + timedelta(milliseconds=1))
    return now.isoformat(timespec="milliseconds")


def _snapshot(
    context: Context, rows: pa.RecordBatch, before: pa.RecordBatch | None, parent: Snapshot | None
) -> tuple[Snapshot, pa.RecordBatch]:
    """Return the snapshot that has these rows, stored where it is not yet, and its rows as they are stored."""
    id_ = snapshots.snapshot_id(rows)
    if parent is not None and parent.id == id_ and before is not None:
        return parent, before
    stored = snapshots.find(context, id_)
    if stored is None:
        return snapshots.save(context, rows, id_, before=before, parent=parent), rows
    known = snapshots.rows_of(context, stored)
    if known is None:
        snapshots.save_table(context, rows, id_)
    return stored, rows if known is None else known


def _compact(journal: Journal, rows: pa.RecordBatch, stored: pa.RecordBatch | None) -> None:
    """Keep in the journal only what the snapshot's table does not say: the same bytes under another ETag."""
    if stored is None or stored is rows:
        journal.compact(rows.slice(0, 0))
        return
    # The same id is the same keys in the same order.
    journal.compact(rows.filter(pc.and_(pc.not_equal(rows["etag"], stored["etag"]), pc.not_equal(rows["sha256"], ""))))


def _tell(snapshot: Snapshot, parent: Snapshot | None) -> None:
    counts = [f"{count:,}" for count in (snapshot.objects, snapshot.new, snapshot.gone)]
    if parent is not None and parent.id == snapshot.id:
        log.info("%s objects (%.1f MB), as before: snapshot %s", counts[0], snapshot.bytes / 1e6, snapshot.id)
    else:
        log.info("%s objects, %s new or changed, %s gone: snapshot %s", *counts, snapshot.id)


pull_task = stage(pull)
