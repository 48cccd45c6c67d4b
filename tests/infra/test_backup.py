"""A backup is put back, and everything is as it was: champion, model file, store, Prefect's own database."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import stat
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
