"""Power cuts at every step of every write: no torn file is ever believed, and what is needed later is not lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from infra.local.facts_cache import FactsCache
from infra.local.files import Workspace, write_atomic
from infra.local.packed_cells import PackedCellCache
from infra.store.base import ObjectInfo
from infra.store.folder import FolderStore
from infra.store.records import Records
from tasks.cells.packing import load_pack
from tasks.pack import pack
from tasks.snapshots.fetch_log import Journal
from tests.builders import (
    channel_model,
    folder_context,
    made_up_candidate,
    made_up_decision,
    plain_cells,
    prepare,
    registry_in,
)
from tests.power import cut_everywhere
from validation.digest import sha256
from validation.records import Decision

pytestmark = pytest.mark.thorough

OLD, NEW = b"what was there before " * 400, b"what is there now, and longer " * 400


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.mkdir()
    return path


def test_a_cut_shows_what_a_careless_writer_loses(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk of these tests does lose things: a plain write can leave nothing, a part, or the old bytes."""
    (root / "file").write_bytes(OLD)
    found: set[bytes] = set()

    def careless() -> None:
        (root / "new").write_bytes(NEW)
        (root / "new").replace(root / "file")

    cut_everywhere(root, careless, lambda left, _: found.add((left / "file").read_bytes()), monkeypatch)
    assert {OLD, NEW, b"", NEW[: len(NEW) // 2], bytes(len(NEW))} <= found


def test_an_atomic_write_is_the_old_or_the_new_and_stays_once_it_has_returned(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomic(root / "file", OLD)

    def check(left: Path, returned: bool) -> None:
        assert (left / "file").read_bytes() in ({NEW} if returned else {OLD, NEW})

    assert cut_everywhere(root, lambda: write_atomic(root / "file", NEW), check, monkeypatch) > 5


def test_a_new_file_in_new_folders_is_there_whole_or_not_at_all(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(left: Path, returned: bool) -> None:
        path = left / "a" / "b" / "file"
        assert path.read_bytes() == NEW if path.exists() else not returned

    assert cut_everywhere(root, lambda: write_atomic(root / "a" / "b" / "file", NEW), check, monkeypatch) > 5


@pytest.mark.parametrize("way", ["put", "create", "save", "point"])
def test_an_object_of_the_store_is_never_torn_and_never_lost(
    way: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, decision = FolderStore(root), made_up_decision()
    ways = {
        "put": lambda: store.put("retraining/x/y.json", NEW),
        "create": lambda: store.create("retraining/x/y.json", NEW),
        "save": lambda: Records(store).save(decision, decision.id),
        "point": lambda: Records(store).point("decision", decision),
    }

    def check(left: Path, returned: bool) -> None:
        after = FolderStore(left)
        found: object
        if way in ("put", "create"):
            expected: object = NEW
            found = after.get("retraining/x/y.json") if after.exists("retraining/x/y.json") else None
        else:
            records, expected = Records(after), decision
            found = records.find(Decision, decision.id) if way == "save" else records.latest("decision", Decision)
        assert found in ([expected] if returned else [expected, None])
        # What was on its way is no object.
        assert {info.key for info in after.list("")} <= {"retraining/x/y.json"} or way in ("save", "point")

    assert cut_everywhere(root, ways[way], check, monkeypatch) > 5


def test_the_cache_gives_the_right_bytes_or_none(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is flushed there, for speed: whatever is left, bytes that are not the ones that were put are dropped."""
    given: set[bytes | None] = set()

    def check(left: Path, _: bool) -> None:
        given.add(Workspace(left).read_object(sha256(NEW)))

    cut_everywhere(root, lambda: Workspace(root).write_object(NEW), check, monkeypatch)
    assert given == {NEW, None}


def test_the_journal_of_a_pull_tells_nothing_that_was_not_noted(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noted = {f"labeled/A/{number}.png": sha256(b"%d" % number) for number in range(40)}
    path = root / "pulled.jsonl"

    def note() -> None:
        with Journal(path) as journal:
            for key, digest in noted.items():
                journal.note([(ObjectInfo(key, 7, "tag"), digest)])
        whole = Journal(path).read()
        Journal(path).compact(whole.slice(5))

    def check(left: Path, _: bool) -> None:
        rows = Journal(left / "pulled.jsonl").read().to_pylist()
        assert {row["key"]: row["sha256"] for row in rows}.items() <= noted.items()

    assert cut_everywhere(root, note, check, monkeypatch) > 5


def test_a_shelf_gives_whole_rows_or_none(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(sha256(b"%d" % number), bytes([number]) * 48) for number in range(1, 30)]
    with PackedCellCache(root / "cells", 48) as shelf:
        shelf.append(rows[:10])
    read: set[bool] = set()

    def write() -> None:
        with PackedCellCache(root / "cells", 48) as shelf:
            shelf.append(rows[10:])

    def check(left: Path, _: bool) -> None:
        with PackedCellCache(left / "cells", 48) as shelf:
            found = shelf.find([digest for digest, _ in rows])
            for digest, row in rows:
                given = shelf.read(found[digest]) if digest in found else None
                assert given in (row, None)
                read.add(given is not None)

    cut_everywhere(root, write, check, monkeypatch)
    assert read == {True, False}


def test_kept_texts_are_the_right_ones_or_gone_and_can_be_kept_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {sha256(b"%d" % number): f'["measured", {number}]' * 30 for number in range(60)}

    def write() -> None:
        with FactsCache(root / "kept.sqlite") as kept:
            kept.put(texts)

    def check(left: Path, _: bool) -> None:
        with FactsCache(left / "kept.sqlite") as kept:
            assert kept.get(texts).items() <= texts.items()
            kept.put(texts)
            assert kept.get(texts) == texts

    assert cut_everywhere(root, write, check, monkeypatch) >= 4


@pytest.mark.parametrize("harm", ["nothing", "half", "zeros"])
def test_a_pack_that_was_not_flushed_is_made_again(harm: str, tmp_path: Path, no_expectations: None) -> None:
    context = folder_context(tmp_path, plain_cells(30, 2))
    prepared = prepare(context)
    whole = np.array(load_pack(context, prepared.pack))
    path = context.workspace.pack_path(prepared.pack.id)
    data = path.read_bytes()
    path.write_bytes({"nothing": b"", "half": data[: len(data) // 2], "zeros": bytes(len(data))}[harm])
    assert pack(context, prepared.split) == prepared.pack
    assert np.array_equal(load_pack(context, prepared.pack), whole)


def test_the_model_file_of_a_registered_version_outlives_a_power_cut(
    home: Path, empty_registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow does not flush what it copies; without the file the champion would be a name with nothing behind it."""
    registry, model = registry_in(home, empty_registry), channel_model()
    artifacts = home / "mlflow-artifacts"
    artifacts.mkdir()
    version = registry.register(made_up_candidate(model), model, made_up_decision()).version

    def second() -> None:
        registry.register(made_up_candidate(model, id_="b" * 24), model, made_up_decision("b" * 24))

    def check(left: Path, _: bool) -> None:
        assert [sha256(file.read_bytes()) for file in left.rglob("*.onnx")] == [sha256(model)] * 2

    assert cut_everywhere(artifacts, second, check, monkeypatch, only_after=True) > 0
    assert version == "1"
