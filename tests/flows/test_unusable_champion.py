"""An unusable champion: the night reports it, promotes nothing, takes no look, and completes once it is repaired."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from flows import retrain
from infra.registry.registry import Registry
from infra.store.folder import FolderStore
from tasks.context import Context
from tests.builders import RED, channel_member, folder_context, leave_finished_trainings, plain_cells, prepare
from tests.stages import plain_stages
from validation.records import Decision, Night, Verdict

pytestmark = pytest.mark.thorough


@pytest.fixture(autouse=True)
def stages_are_plain_functions(monkeypatch: pytest.MonkeyPatch, no_expectations: None) -> None:
    """Outside a flow a Prefect task would start a server; the plain functions do the same."""
    plain_stages(monkeypatch)


def a_night(context: Context, fastai: bytes, keras: bytes) -> Night:
    """One night whose trainings have ended with these model files."""
    prepared = prepare(context, Registry(context.settings).champion())
    for name, member in (("fastai", fastai), ("keras", keras)):
        leave_finished_trainings(context, name, prepared.split.id, member)
    return retrain.run_night(context)


def test_a_night_with_a_tampered_champion_promotes_nobody_and_goes_on_once_it_is_repaired(
    home: Path, empty_registry: Path
) -> None:
    home.mkdir()
    (home / "mlflow.db").write_bytes(empty_registry.read_bytes())
    gate = {"min_auc": 0.0, "min_sensitivity": 0.0, "min_specificity": 0.0}
    context = folder_context(home, plain_cells(), gate=gate)
    first = a_night(context, channel_member(RED), channel_member(RED, centre=104.0))
    assert (first.verdict, first.champion_after) == (Verdict.PROMOTED, "1")

    assert isinstance(context.store, FolderStore)
    for key, data in plain_cells(6, 4, seed=2, first=200).items():
        context.store.put(key, data)
    (file,) = (home / "mlflow-artifacts").rglob("*.onnx")
    sound = file.read_bytes()
    file.write_bytes(sound + b"!")
    second = a_night(context, channel_member(), channel_member(centre=104.0))
    assert second.verdict is Verdict.CHAMPION_UNUSABLE
    assert (second.champion_before, second.champion_after) == ("1", "1")
    assert second.decision
    decision = context.records.load(Decision, second.decision)
    assert "registered was" in (decision.champion_problem or "")
    assert first.decision
    assert first.decision in decision.sentence
    assert len(list(context.store.list("retraining/looks/"))) == 1  # that of the first champion
    assert Path(second.report or "").exists()
    assert Registry(context.settings).champion() is not None

    file.write_bytes(sound)
    third = retrain.run_night(dataclasses.replace(context))
    assert third.verdict in (Verdict.UNDECIDED, Verdict.PROMOTED)
    assert third.decision != second.decision
    assert len(list(context.store.list("retraining/looks/"))) == 2
