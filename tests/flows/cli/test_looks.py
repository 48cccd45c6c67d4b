"""``retrain looks`` as its user sees it."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest

from flows import console
from infra.store.folder import FolderStore
from infra.store.keys import look_key
from tasks.context import Context
from tasks.judging.ledger import pair_of, take_look
from tests.builders import registry_in, small_settings
from tests.flows.cli.test_main import retrain

pytestmark = pytest.mark.thorough


@pytest.fixture(autouse=True)
def logs_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore this process' loggers, which a command configures."""
    monkeypatch.setattr("flows.console.prepare_logging", lambda: None)
    for name in console.PACKAGES:
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])


def test_it_explains_itself(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert retrain(monkeypatch, "looks", "--help") == 0
    assert "365 days" in capsys.readouterr().out


def test_looks_are_counted_and_a_deleted_copy_is_named(
    home: Path, empty_registry: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = registry_in(home, empty_registry)
    (home / "store").mkdir()
    context = Context.open(small_settings(home))
    assert retrain(monkeypatch, "looks", "--json") == 0
    before = json.loads(capsys.readouterr().out)
    assert (before["looks_taken"], before["looks_left"], before["problems"]) == (0, 24, [])
    take_look(context, registry, "a" * 64, "b" * 64)
    take_look(context, registry, "c" * 64, "b" * 64)
    assert isinstance(context.store, FolderStore)
    context.store.delete(look_key(2, pair_of("c" * 64, "b" * 64)))
    assert retrain(monkeypatch, "looks", "--json") == 0
    after = json.loads(capsys.readouterr().out)
    assert (after["looks_taken"], after["looks_left"]) == (2, 22)
    assert after["problems"] == ["look 2: the store has none"]
    shutil.rmtree(home / "store" / "retraining" / "looks")
    assert retrain(monkeypatch, "looks") == 0
    shown = capsys.readouterr().out
    assert "looks taken        2" in shown
    assert "look 1: the store has none" in shown
