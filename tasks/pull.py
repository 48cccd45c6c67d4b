"""Pull: list the store, compare with what is known, fetch what is new, write an immutable snapshot.

An object whose key, size and ETag are known is not fetched again. What was fetched is noted object by object, so a
pull that is killed goes on where it was.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from infra.keys import LABELED, is_junk, parse_labeled
from infra.store import ObjectInfo
from tasks.context import Context, Progress
from tasks.stage import stage
from validation.digest import digest
from validation.errors import DataInvalid, ObjectMissing, StoreUnreachable
from validation.patients import patient_of
from validation.records import CLASSES, Snapshot

log = logging.getLogger(__name__)

# Many small objects are bound by round trips, not by bytes.
THREADS = 16
COLUMNS = ["key", "size", "etag", "sha256", "label", "patient", "first_seen", "problem"]


@dataclass(frozen=True, slots=True)
class Row:
    """One object of a snapshot; empty text where there is nothing to say."""

    key: str
    size: int
    etag: str
    sha256: str
    label: str
    patient: str
    first_seen: str
    problem: str


def pull(context: Context) -> Snapshot:
    """Return a snapshot of everything under ``labeled/``.

    Raises:
        StoreUnreachable: when the store does not answer.
        DataInvalid: when there is nothing under ``labeled/``.
    """
    context.store.check()
    parent = context.records.latest("snapshot", Snapshot)
    before = _rows(context, parent)
    listed = {info.key: info for info in context.store.list(LABELED)}
    if not listed:
        raise DataInvalid(
            f"no cells in {context.settings.store}: nothing lies under {LABELED}<Class>/",
            f"put some there with `retrain import FOLDER`; the classes are {' and '.join(CLASSES)}",
        )
    rows = _fetch_new(context, listed, before)
    snapshot = _snapshot(context, rows, before, parent)
    context.records.point("snapshot", snapshot)
    if parent is not None and parent.id == snapshot.id:
        log.info(
            "%s objects (%.1f MB), as before: snapshot %s", f"{snapshot.objects:,}", snapshot.bytes / 1e6, snapshot.id
        )
    else:
        counts = (f"{count:,}" for count in (snapshot.objects, snapshot.new, snapshot.gone))
        log.info("%s objects, %s new or changed, %s gone: snapshot %s", *counts, snapshot.id)
    return snapshot


def read_object(context: Context, key: str, sha256: str) -> bytes:
    """Return the bytes that a snapshot names: from the cache, or fetched again where they are missing or rotted.

    Raises:
        ObjectMissing: when the store no longer holds these bytes under this key.
    """
    data = context.workspace.read_object(sha256)
    if data is None:
        data = context.store.get(key)
        if context.workspace.write_object(data) != sha256:
            raise ObjectMissing(f"{key!r} was overwritten since the snapshot", "run the night again")
    return data


def _rows(context: Context, snapshot: Snapshot | None) -> dict[str, Row]:
    if snapshot is None:
        return {}
    table = context.records.load_table(snapshot.table)
    return {values[0]: Row(*values) for values in table[COLUMNS].itertuples(index=False, name=None)}


def _fetch_new(context: Context, listed: dict[str, ObjectInfo], before: dict[str, Row]) -> list[Row]:
    journal = Journal(context.workspace.home / "cache" / f"pulled-{digest(context.store.uri)}.jsonl")
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    known = {key: (row.size, row.etag, row.sha256) for key, row in before.items() if row.sha256} | journal.read()
    wanted = [info for info in listed.values() if _problem(context, info) == "" and not _is_known(info, known)]
    progress = Progress(log, "pulled", len(wanted))
    fetched: dict[str, str] = {}
    failed: dict[str, str] = {}
    with journal, ThreadPoolExecutor(THREADS) as pool:
        for info, sha256, problem in pool.map(lambda info: _fetch(context, info), wanted):
            if sha256:
                fetched[info.key] = sha256
                journal.note(info, sha256)
            else:
                failed[info.key] = problem
            progress.advance()
    if failed:
        context.store.check()  # a store that is gone is an error of the night, not of the object
    return [
        _row(context, info, known, fetched, failed, before, now)
        for info in sorted(listed.values(), key=lambda info: info.key)
        if failed.get(info.key) != "vanished"
    ]


def _fetch(context: Context, info: ObjectInfo) -> tuple[ObjectInfo, str, str]:
    try:
        return info, context.workspace.write_object(context.store.get(info.key)), ""
    except ObjectMissing:
        return info, "", "vanished"  # deleted while the listing ran
    except StoreUnreachable as error:
        log.warning("cannot fetch %r: %s", info.key, error.message)
        return info, "", "unreadable"


def _is_known(info: ObjectInfo, known: dict[str, tuple[int, str, str]]) -> bool:
    return info.key in known and known[info.key][:2] == (info.size, info.etag)


def _problem(context: Context, info: ObjectInfo) -> str:
    """Why an object is not worth fetching; empty when it is."""
    if is_junk(info.key):
        return "junk file"
    parsed = parse_labeled(info.key)
    if parsed is None:
        return "odd key"
    if parsed.label not in CLASSES:
        return "unknown class"
    return "too many bytes" if info.size > context.settings.data.max_bytes else ""


def _row(
    context: Context,
    info: ObjectInfo,
    known: dict[str, tuple[int, str, str]],
    fetched: dict[str, str],
    failed: dict[str, str],
    before: dict[str, Row],
    now: str,
) -> Row:
    problem = _problem(context, info) or failed.get(info.key, "")
    sha256 = "" if problem else fetched.get(info.key) or known[info.key][2]
    parsed = parse_labeled(info.key)
    label = parsed.label if parsed and parsed.label in CLASSES else ""
    patient = patient_of(parsed.name, context.settings.data.patient_pattern) if parsed else None
    old = before.get(info.key)
    first_seen = old.first_seen if old and old.sha256 == sha256 else now
    return Row(info.key, info.size, info.etag, sha256, label, patient or "", first_seen, problem)


def _snapshot(context: Context, rows: list[Row], before: dict[str, Row], parent: Snapshot | None) -> Snapshot:
    # ETags and times are left out of the name: the same images are the same snapshot in any store, on any day.
    id_ = digest([[row.key, row.size, row.sha256, row.label, row.patient, row.problem] for row in rows])
    if (stored := context.records.find(Snapshot, id_)) is not None:
        return stored
    table = pd.DataFrame([asdict(row) for row in rows], columns=COLUMNS)
    usable = table[table["sha256"] != ""]
    snapshot = Snapshot(
        id=id_,
        parent=parent.id if parent else None,
        table=context.records.save_table(Snapshot, id_, "objects", table),
        objects=len(rows),
        bytes=int(table["size"].sum()),
        by_class={label: int((usable["label"] == label).sum()) for label in CLASSES},
        patients=int(usable.loc[usable["patient"] != "", "patient"].nunique()),
        without_patient=int((usable["patient"] == "").sum()),
        new=sum(row.key not in before or before[row.key].sha256 != row.sha256 for row in rows),
        gone=len(before.keys() - {row.key for row in rows}),
        created_at=datetime.now(UTC),
    )
    context.records.save(snapshot, snapshot.id)
    return snapshot


class Journal:
    """Notes what was fetched, a line an object, so that a killed pull need not fetch it again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Journal:
        self._file = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def note(self, info: ObjectInfo, sha256: str) -> None:
        """Note that ``info`` was fetched and what it holds."""
        self._file.write(json.dumps([info.key, info.size, info.etag, sha256]) + "\n")
        self._file.flush()

    def read(self) -> dict[str, tuple[int, str, str]]:
        """Return key -> (size, etag, sha256) of all that was noted."""
        return dict(self._entries())

    def _entries(self) -> Iterator[tuple[str, tuple[int, str, str]]]:
        if not self._path.exists():
            return
        with self._path.open(encoding="utf-8") as lines:
            for line in lines:
                try:
                    key, size, etag, sha256 = json.loads(line)
                except ValueError:
                    continue  # torn by a kill: that object is fetched again
                yield key, (size, etag, sha256)


pull_task = stage(pull)
