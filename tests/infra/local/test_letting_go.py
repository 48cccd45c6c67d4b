"""What is let go of: our own objects in every store and never an input, packed cells, facts, temporary folders."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.settings import Settings as PrefectSettings

from infra.local.facts_cache import FactsCache
from infra.local.packed_cells import PackedCellCache, keep_packed_cells
from infra.local.temporary import OLD_SECONDS, abandoned_folders, temporary_folder
from infra.runtime import prepare_environment
from infra.settings.settings import Settings
from infra.store.base import Store
from infra.store.folder import FolderStore
from infra.store.memory import MemoryStore
from infra.store.s3 import S3Store
from validation.digest import sha256
from validation.errors import RetrainError

pytestmark = pytest.mark.thorough

ROW = 48


@pytest.fixture(params=["memory", "folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "s3":
        bucket: S3Store = request.getfixturevalue("s3_store")
        return bucket
    return MemoryStore() if request.param == "memory" else FolderStore(tmp_path / "store")


def test_an_object_of_our_own_is_deleted_and_its_neighbours_stay(store: Store) -> None:
    for key in ("retraining/candidates/a/model.onnx", "retraining/candidates/a.json", "retraining/candidates/ab.json"):
        store.put(key, b"x")
    store.delete("retraining/candidates/a/model.onnx")
    store.delete("retraining/candidates/a.json")
    store.delete("retraining/candidates/a.json")  # that it is gone already is no error
    assert [info.key for info in store.list("retraining/")] == ["retraining/candidates/ab.json"]


@pytest.mark.parametrize(
    "key", ["labeled/Parasitized/x.png", "retraining/../labeled/x.png", "other", "", "retraining/"]
)
def test_an_input_object_is_never_deleted(store: Store, key: str) -> None:
    store.put("labeled/Parasitized/x.png", b"a cell")
    with pytest.raises(RetrainError, match="refused to delete"):
        store.delete(key)
    assert store.get("labeled/Parasitized/x.png") == b"a cell"


def rows(*numbers: int) -> list[tuple[str, bytes]]:
    return [(sha256(bytes([number])), bytes([number]) * ROW) for number in numbers]


def test_a_shelf_that_was_cleared_holds_the_rows_of_the_living_and_takes_new_ones(tmp_path: Path) -> None:
    with PackedCellCache(tmp_path / "cells", ROW) as shelf:
        shelf.append(rows(*range(100)))
    living = {digest for digest, _ in rows(*range(0, 100, 3))}
    keep_packed_cells(tmp_path / "cells", ROW, living)
    with PackedCellCache(tmp_path / "cells", ROW) as shelf:
        assert (shelf.rows, shelf.stale(living)) == (34, 0)
        found = shelf.find({digest for digest, _ in rows(*range(100))})
        assert found.keys() == living
        assert {digest: shelf.read(where) for digest, where in found.items()} == dict(rows(*range(0, 100, 3)))
        shelf.append(rows(1))
        assert shelf.read(shelf.find([rows(1)[0][0]])[rows(1)[0][0]]) == rows(1)[0][1]
    assert list(tmp_path.iterdir()) == [tmp_path / "cells"]
    assert (tmp_path / "cells" / "rows.bin").stat().st_size == 35 * ROW


def test_rotten_rows_are_not_carried_over(tmp_path: Path) -> None:
    with PackedCellCache(tmp_path / "cells", ROW) as shelf:
        shelf.append(rows(1, 2))
    with (tmp_path / "cells" / "rows.bin").open("r+b") as file:
        file.write(b"\xff" * ROW)
    keep_packed_cells(tmp_path / "cells", ROW, {digest for digest, _ in rows(1, 2)})
    with PackedCellCache(tmp_path / "cells", ROW) as shelf:
        assert list(shelf.find(dict(rows(1, 2)))) == [rows(2)[0][0]]


def test_facts_of_strangers_are_dropped_and_the_file_becomes_smaller(tmp_path: Path) -> None:
    digests = [sha256(bytes([number])) for number in range(200)]
    with FactsCache(tmp_path / "facts.sqlite") as kept:
        kept.put(dict.fromkeys(digests, "a text " * 50))
        before = kept.path.stat().st_size
        strangers = kept.stale(set(digests[:20]))
        assert sorted(strangers) == sorted(digests[20:])
        kept.drop(strangers)
        assert (kept.count(), len(kept.get(digests))) == (20, 20)
        assert kept.path.stat().st_size < before / 2


def test_a_temporary_folder_outlives_a_killed_process_and_is_known_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = (
        "import os, signal, sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from infra.local.temporary import temporary_folder\n"
        "with temporary_folder('version') as folder: os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    (left,) = tmp_path.iterdir()
    with temporary_folder("mine") as mine:
        assert abandoned_folders() == []  # too young: in containers that share a disk, process ids are not unique
        for path in (left, mine):
            os.utime(path, (0, path.stat().st_mtime - OLD_SECONDS - 1))
        assert abandoned_folders() == [left]
    assert not mine.exists()


def test_prefect_is_told_to_let_old_runs_go(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENABLED", "RETENTION_PERIOD"):  # as another test may have left it
        monkeypatch.delenv(f"PREFECT_SERVER_SERVICES_DB_VACUUM_{name}", raising=False)
    prepare_environment(Settings(home=home, prune={"runs_days": 12}))
    vacuum = PrefectSettings().server.services.db_vacuum
    assert vacuum.enabled_vacuum_types >= {"events", "flow_runs"}
    assert vacuum.retention_period.days == 12
