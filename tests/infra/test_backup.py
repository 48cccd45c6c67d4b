"""A backup is put back, and everything is as it was: champion, model file, store, Prefect's own database."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.main import app
from infra.settings.settings import load_settings
from infra.store.folder import FolderStore
from tests.builders import channel_model, made_up_candidate, made_up_decision, registry_in
from validation.errors import RetrainError, UsageError

pytestmark = pytest.mark.thorough

KEY = "labeled/Uninfected/C1P1ThinF_ä b.png"


@pytest.fixture
def filled(home: Path, empty_registry: Path) -> Path:
    """A home folder with a champion, a store, a settings file and Prefect's database, with an open transaction."""
    registry = registry_in(home, empty_registry)
    model = channel_model()
    version = registry.register(made_up_candidate(model), model, made_up_decision())
    registry.set_champion(version.version)
    (home / "store").mkdir()
    FolderStore(home / "store").put(KEY, b"cell")
    (home / "retrain.toml").write_text("[gate]\nlooks = 7\n")
    (home / "cache").mkdir(exist_ok=True)
    (home / "cache" / "large").write_bytes(b"made again")
    (home / "prefect").mkdir()
    with closing(sqlite3.connect(home / "prefect" / "prefect.db")) as database:
        database.execute("pragma journal_mode = wal")
        database.execute("create table run (name text)")
        database.execute("insert into run values ('night')")
        database.commit()
    return home


def command(*arguments: str) -> dict[str, object]:
    done = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def test_what_was_lost_is_put_back(filled: Path, tmp_path: Path, empty_registry: Path) -> None:
    before = registry_in(filled, empty_registry).champion()
    assert before is not None
    saved = tmp_path / "backups" / "monday"
    # Another connection's uncommitted change is no obstacle, and not part of it.
    with closing(sqlite3.connect(filled / "prefect" / "prefect.db")) as writer:
        writer.execute("insert into run values ('unfinished')")
        manifest = command("backup", str(saved))
    assert set(manifest["saved"]) == {"settings", "store", "registry", "artifacts", "prefect"}  # type: ignore[call-overload]
    assert not list(saved.rglob("large"))
    shutil.rmtree(filled)
    umask = os.umask(0o002)
    try:
        command("restore", str(saved))
    finally:
        os.umask(umask)
    assert stat.S_IMODE(filled.stat().st_mode) == 0o700
    registry = registry_in(filled, empty_registry)
    assert registry.champion() == before
    assert registry.model_bytes(before) == channel_model()
    assert FolderStore(filled / "store").get(KEY) == b"cell"
    assert load_settings().gate.looks == 7
    with closing(sqlite3.connect(filled / "prefect" / "prefect.db")) as database:
        assert database.execute("select name from run").fetchall() == [("night",)]


def test_the_settings_file_that_comes_back_says_where_the_rest_goes(filled: Path, tmp_path: Path) -> None:
    """As `retrain demo` leaves a home folder: its store is named in the settings file alone."""
    (filled / "store").rename(filled / "demo")
    (filled / "retrain.toml").write_text(f'store = "{(filled / "demo").as_uri()}"\n')
    command("backup", str(tmp_path / "saved"))
    shutil.rmtree(filled)
    command("restore", str(tmp_path / "saved"))
    assert FolderStore(filled / "demo").get(KEY) == b"cell"
    assert load_settings().store == (filled / "demo").as_uri()


def test_a_backup_is_of_one_moment_whatever_is_written_and_removed_meanwhile(
    filled: Path, tmp_path: Path, empty_registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A promotion, a pruned record, a moved pointer, a new cell and unfinished files, between two copies."""
    store, registry = FolderStore(filled / "store"), registry_in(filled, empty_registry)
    before = {
        "retraining/history/000001.json": b"first",
        "retraining/latest/night.json": b"first",
        "retraining/splits/pruned.json": b"pruned",
    }
    for key, data in before.items():
        store.put(key, data)
    registry.put_if_absent("history.000001", "first")
    copy, meanwhile = shutil.copy2, list[Path]()

    def copy_later(source: Path, target: Path) -> None:
        if not meanwhile:
            meanwhile.append(source)
            store.delete("retraining/splits/pruned.json")
            store.put("retraining/history/000002.json", b"second")
            registry.put_if_absent("history.000002", "second")
            store.put("retraining/latest/night.json", b"second")
            store.put(KEY, b"replaced")
            (filled / "store" / "retraining" / ".tmp-1-0123abcd").write_bytes(b"half")
        copy(source, target)

    monkeypatch.setattr(shutil, "copy2", copy_later)
    (filled / "store" / "labeled" / ".tmp-1-0123abcd").write_bytes(b"half")
    command("backup", str(tmp_path / "saved"))
    assert meanwhile
    shutil.rmtree(filled)
    command("restore", str(tmp_path / "saved"))
    assert {info.key: store.get(info.key) for info in store.list("")} == {
        "retraining/history/000001.json": b"first",
        KEY: b"replaced",
    }
    # MLflow in this process still has the old file open.
    with closing(sqlite3.connect(filled / "mlflow.db")) as database:
        assert database.execute("select value from params where key like 'history.%'").fetchall() == [("first",)]
    assert not list(filled.rglob(".tmp-*"))


def test_a_backup_has_the_parts_of_every_table_that_it_has(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A night writes parts, and then their table, while the files are listed: by then parts were listed already."""
    from infra.backup import back_up
    from infra.store.keys import PARTS, part_key

    store, walk = FolderStore(filled / "store"), FolderStore.walk
    store.put(f"{PARTS}a.parquet", b"an older part")
    table = "retraining/splits/a.rows.parts"

    def meanwhile(self: FolderStore, folder_key: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
        for key, entry in walk(self, folder_key):
            yield key, entry
            if key == f"{PARTS}a.parquet" and not store.exists(table):
                store.put(part_key("b"), b"a part")
                store.put(table, b"names it")

    monkeypatch.setattr(FolderStore, "walk", meanwhile)
    back_up(load_settings(), tmp_path / "saved")
    saved = tmp_path / "saved" / "store"
    assert (saved / table).exists()
    assert (saved / part_key("b")).exists()


def test_an_empty_or_a_wrong_home_is_no_backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from infra.backup import back_up

    for wrong in (tmp_path / "typo", tmp_path / "empty"):
        monkeypatch.setenv("RETRAIN_HOME", str(wrong))
        if wrong.name == "empty":
            (wrong / "store").mkdir(parents=True)
        with pytest.raises(UsageError, match="there is nothing to back up: no store at") as caught:
            back_up(load_settings(), tmp_path / "saved")
        assert str(wrong) in caught.value.message
        assert "RETRAIN_HOME" in caught.value.hint
    assert not (tmp_path / "saved").exists()
    assert not (tmp_path / "typo").exists()
    (tmp_path / "empty" / "store" / "cell").write_bytes(b"cell")
    assert set(back_up(load_settings(), tmp_path / "saved")["saved"]) == {"store"}


def test_nothing_is_overwritten_and_no_half_or_damaged_backup_is_believed(filled: Path, tmp_path: Path) -> None:
    from infra.backup import back_up, restore

    settings, saved = load_settings(), tmp_path / "saved"
    back_up(settings, saved)
    with pytest.raises(UsageError, match="is not empty"):
        back_up(settings, saved)
    with pytest.raises(UsageError, match="would be overwritten"):
        restore(settings, saved)
    shutil.rmtree(filled)
    with pytest.raises(UsageError, match="elsewhere than the backup"):
        restore(settings.model_copy(update={"store": "file:///another"}), saved)
    next(path for path in (saved / "store").rglob("*.png")).write_bytes(b"rotten")
    with pytest.raises(RetrainError, match="damaged"):
        restore(settings, saved)
    (saved / "backup.json").unlink()
    with pytest.raises(UsageError, match="not a finished backup"):
        restore(settings, saved)
    assert not filled.exists()


def test_what_lies_on_servers_is_named(home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from infra.backup import back_up
    from infra.settings.settings import Settings

    settings = Settings(
        home=home,
        store="s3://cells",
        registry="http://mlflow:5000",
        up={"database": "postgresql://malaria:hush@db/prefect"},
    )
    manifest = back_up(settings, tmp_path / "saved")
    assert (manifest["saved"], set(manifest["elsewhere"])) == ({}, {"store", "registry", "prefect"})
    assert "hush" not in caplog.text
    assert "pg_dump" in caplog.text
