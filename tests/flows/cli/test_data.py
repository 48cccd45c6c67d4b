"""`retrain validate` and `retrain quarantine`, as a person and as a program see them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.builders import synthetic_cells
from tests.flows.cli.test_main import retrain
from validation.findings import REASONS
from validation.records import POSITIVE

pytestmark = pytest.mark.thorough

CELLS = synthetic_cells(patients=10, cells_per_patient=4)
HOSTILE = f"labeled/{POSITIVE}/C9P9thin_\u202egnp.exe<script>.png"


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_registry: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir(parents=True)
    shutil.copy(empty_registry, home / "mlflow.db")
    monkeypatch.setenv("RETRAIN_HOME", str(home))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("RETRAIN_DATA__MIN_CELLS_PER_CLASS", "5")
    for key, data in {**CELLS, HOSTILE: b"no image"}.items():
        path = home / "store" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return home / "store"


def test_validate_says_what_was_found_and_that_a_night_would_train(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], store: Path
) -> None:
    assert retrain(monkeypatch, "validate") == 0
    shown = capsys.readouterr().out
    assert f"{len(CELLS)} of {len(CELLS) + 1} images accepted" in shown
    assert "not an image" in shown
    assert "VALID  a night would train on it" in shown
    # Nothing was trained, and no night was recorded.
    assert not list(store.glob("retraining/nights/*"))
    assert not list(store.glob("retraining/candidates/*"))


def test_invalid_data_ends_with_exit_code_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RETRAIN_DATA__MIN_CELLS_PER_CLASS", "5000")
    assert retrain(monkeypatch, "validate", "--json") == 3
    result = json.loads(capsys.readouterr().out)
    failed = [check["name"] for check in result["checks"] if not check["passed"] and check["severity"] == "invalid"]
    assert failed == ["Parasitized cells", "Uninfected cells"]
    assert retrain(monkeypatch, "validate") == 3
    assert "stops the night  Parasitized cells" in capsys.readouterr().out


def findings(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: str) -> list[Any]:
    assert retrain(monkeypatch, "quarantine", "--json", *options) == 0
    return list(json.loads(capsys.readouterr().out)["findings"])


def test_quarantine_lists_what_was_left_out_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert retrain(monkeypatch, "quarantine") == 2
    assert "nothing has been validated yet" in capsys.readouterr().err
    assert retrain(monkeypatch, "validate") == 0
    capsys.readouterr()
    (found,) = findings(monkeypatch, capsys)
    assert (found["key"], found["reason"], found["new"]) == (HOSTILE, "not an image", True)
    assert retrain(monkeypatch, "quarantine") == 0
    shown = capsys.readouterr().out
    assert "what to do: export the image again" in shown
    assert "\\u202egnp.exe<script>.png" in shown
    assert "\u202e" not in shown
    assert findings(monkeypatch, capsys, "--reason", "no cell") == []
    assert retrain(monkeypatch, "quarantine", "--reason", "ugly") == 2
    assert "known are: junk file" in capsys.readouterr().err


def test_quarantine_explains_every_reason_without_a_store(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], store: Path
) -> None:
    shutil.rmtree(store)
    assert retrain(monkeypatch, "quarantine", "--reasons") == 0
    shown = capsys.readouterr().out
    assert all(name in shown and reason.meaning in shown for name, reason in REASONS.items())
    assert retrain(monkeypatch, "quarantine", "--reasons", "--json") == 0
    assert set(json.loads(capsys.readouterr().out)) == set(REASONS)
