"""``retrain prune``: reports what, how much and why, removes it, and refuses while a night runs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from flows.cli.main import main
from infra.local.files import Workspace
from infra.store.folder import FolderStore
from tests.builders import plain_cells, registry_in

pytestmark = pytest.mark.thorough


@pytest.fixture
def used(home: Path, empty_registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with cells and expired work folders."""
    # Not what other processes that were killed have left on this machine.
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    registry_in(home, empty_registry)
    store = FolderStore(home / "store")
    for key, data in plain_cells(2, 2).items():
        store.put(key, data)
    for name in ("a", "b"):
        log = home / "scratch" / f"train-{name}" / "stderr.log"
        log.parent.mkdir(parents=True)
        log.write_text("x" * 500)
        os.utime(log, (0, 0))
        os.utime(log.parent, (0, 0))
    return home


def retrain(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["retrain", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_a_dry_run_reports_and_removes_nothing(
    used: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert retrain(monkeypatch, "prune", "--dry-run", "--json", "--all") == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["dry_run"], printed["things"], printed["bytes"], printed["problems"]) == (True, 2, 1000, [])
    assert printed["by_reason"][0]["why"] == "it failed, or was killed, over 7 days ago"
    assert {Path(removal["name"]).name for removal in printed["removals"]} == {"train-a", "train-b"}
    assert len(list((used / "scratch").iterdir())) == 2

    assert retrain(monkeypatch, "prune") == 0
    shown = capsys.readouterr().out
    assert "it failed, or was killed, over 7 days ago" in shown
    assert "2 things, 0.0 MB removed" in shown
    assert list((used / "scratch").iterdir()) == []
    assert len(list((used / "store" / "labeled").rglob("*.png"))) == 4

    assert retrain(monkeypatch, "prune", "--json") == 0
    assert json.loads(capsys.readouterr().out)["things"] == 0


def test_it_is_refused_during_a_night(
    used: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Workspace(used).night_lock():
        assert retrain(monkeypatch, "prune") == 1
    assert "another night is running" in capsys.readouterr().err
    assert len(list((used / "scratch").iterdir())) == 2


def test_a_damaged_record_is_reported_and_exits_with_1(
    used: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = used / "store" / "retraining" / "decisions" / f"{'d' * 24}.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    assert retrain(monkeypatch, "prune", "--json") == 1
    shown = capsys.readouterr()
    assert damaged.name in json.loads(shown.out)["problems"][0]
    assert "not everything could be examined" in shown.err
    assert list((used / "scratch").iterdir()) == []  # caches are removed all the same
