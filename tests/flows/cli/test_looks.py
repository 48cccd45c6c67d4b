"""``retrain holdout`` as its user sees it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from flows import console
from infra.store.folder import FolderStore
from tests.builders import plain_cells
from tests.flows.cli.test_main import retrain

pytestmark = pytest.mark.thorough


@pytest.fixture(autouse=True)
def logs_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore this process' loggers, which a command configures."""
    monkeypatch.setattr("flows.console.prepare_logging", lambda: None)
    for name in console.PACKAGES:
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])


@pytest.fixture
def store(home: Path, monkeypatch: pytest.MonkeyPatch, no_expectations: None) -> FolderStore:
    del no_expectations
    monkeypatch.setenv("RETRAIN_GATE__MIN_PATIENTS", "3")
    monkeypatch.setenv("RETRAIN_GATE__MIN_CELLS_PER_CLASS", "5")
    store = FolderStore(home / "store")
    store.root.mkdir(parents=True)
    for key, data in plain_cells(30, 4).items():
        store.put(key, data)
    return store


@pytest.mark.parametrize("command", ["status", "rotate"])
def test_every_command_explains_itself(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert retrain(monkeypatch, "holdout", command, "--help") == 0
    assert "--json" in capsys.readouterr().out


def test_a_rotation_is_recorded_and_shown(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert store.exists("labeled/Parasitized/C1P1ThinF_IMG_20260101_cell_0.png")
    assert retrain(monkeypatch, "holdout", "status", "--json") == 0
    before = json.loads(capsys.readouterr().out)
    assert (before["generation"], before["looks_left"], before["patients"]) == ("g1", 24, None)
    assert retrain(monkeypatch, "holdout", "rotate", "--why", "a new microscope", "--json") == 0
    made = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (made["name"], made["why"]) == ("g1.2", "a new microscope")
    assert made["who"]
    assert retrain(monkeypatch, "holdout", "status") == 0
    shown = capsys.readouterr().out
    assert "g1.2" in shown
    assert "a new microscope" in shown
    assert "None" not in shown


def test_a_rotation_without_new_patients_is_refused_in_one_line(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RETRAIN_GATE__MIN_PATIENTS", "31")
    assert retrain(monkeypatch, "holdout", "rotate") == 1
    stderr = capsys.readouterr().err
    assert "30 patients (60 Parasitized and 60 Uninfected cells)" in stderr
    assert "about 1 more" in stderr
    assert "Traceback" not in stderr
    assert not list(store.list("retraining/generations/"))
