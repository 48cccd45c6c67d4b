"""The registry: a real MLflow over a real SQLite file, and what anyone gets from it with MLflow's own client."""

from __future__ import annotations

import importlib.metadata
import os
import re
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.registry.mlflow_client import call_mlflow
from infra.registry.registry import Registry
from infra.scoring.model_file import ModelFile
from infra.settings.settings import Settings
from infra.store.keys import MODEL_NAME
from tests.builders import NOON, RED, SIDE, channel_model, made_up_candidate, made_up_decision, registry_in
from validation.digest import sha256
from validation.errors import ModelFileInvalid, RegistryUnreachable, RetrainError, UsageError
from validation.records import ChampionRef, Decision, FieldMonth, FieldReport, Interval, Night, Verdict

pytestmark = pytest.mark.thorough

GREEN_MODEL, RED_MODEL = channel_model(), channel_model(RED)


@pytest.fixture
def registry(home: Path, empty_registry: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Registry:
    monkeypatch.chdir(tmp_path)
    return registry_in(home, empty_registry)


def register(registry: Registry, model: bytes = GREEN_MODEL, decision: str = "a" * 24) -> ChampionRef:
    return registry.register(made_up_candidate(model), model, made_up_decision(decision))


def test_there_is_no_champion_at_first(registry: Registry) -> None:
    assert registry.champion() is None


def test_a_registered_version_is_champion_once_it_is_set(registry: Registry, home: Path, tmp_path: Path) -> None:
    first = register(registry)
    assert registry.champion() is None
    registry.set_champion(first.version)
    candidate = made_up_candidate(GREEN_MODEL)
    champion = registry.champion()
    assert champion == first
    assert (champion.version, champion.candidate, champion.model) == ("1", candidate.id, "fastai")
    assert champion.threshold == candidate.threshold
    assert champion.model_sha256 == sha256(GREEN_MODEL)
    assert champion.since is not None
    assert registry.model_bytes(champion) == GREEN_MODEL
    # Another process sees the same, and nothing was written outside the home folder.
    assert Registry(Settings(home=home)).champion() == first
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_the_alias_moves_and_old_versions_stay(registry: Registry) -> None:
    first, second = register(registry), register(registry, RED_MODEL, "b" * 24)
    assert (first.version, second.version) == ("1", "2")
    registry.set_champion("1")
    registry.set_champion("2")
    assert registry.champion() == second
    assert registry.model_bytes(first) == GREEN_MODEL
    assert registry.model_bytes(second) == RED_MODEL


@pytest.mark.parametrize("before", [None, "http://127.0.0.1:9"])
def test_other_processes_are_not_told_which_registry_is_meant(
    before: str | None, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    for name in names:
        monkeypatch.delenv(name, raising=False)
        if before is not None:
            monkeypatch.setenv(name, before)
    register(registry)
    assert [os.environ.get(name) for name in names] == [before, before]


def test_the_same_decision_registers_once(registry: Registry) -> None:
    assert register(registry) == register(registry)
    assert register(registry, decision="b" * 24).version == "2"


def test_a_version_tells_where_it_came_from(registry: Registry, home: Path) -> None:
    import mlflow

    candidate, decision = made_up_candidate(GREEN_MODEL), made_up_decision("a" * 24)
    registry.register(candidate, GREEN_MODEL, decision, card="---\nlibrary_name: onnx\n---\n")
    client = mlflow.MlflowClient(tracking_uri=registry.uri, registry_uri=registry.uri)
    version = client.get_model_version(MODEL_NAME, "1")
    assert version.tags["decision"] == "a" * 24
    assert version.tags["snapshot"] == "1" * 24
    assert version.tags["synthetic"] == "true"
    assert version.tags["version.framework"] == "1.0"
    assert version.tags["evaluation"] == "none"
    assert len(version.tags["members"].split(",")) == 5
    assert version.tags["train_patients_digest"] == "d" * 24
    assert version.tags["report"] == f"{(home / 'store').as_uri()}/retraining/reports/{'a' * 24}.html"
    assert re.fullmatch(r"[0-9a-f]{40}|unknown", version.tags["code_revision"])
    assert version.tags["code_changed"] in ("true", "false", "unknown")
    assert version.tags["version.onnxruntime"] == importlib.metadata.version("onnxruntime")
    page = f"http://127.0.0.1:8765/reports/{'a' * 24}.html"
    assert version.description == f"It was promoted\n\n[Report]({page})"
    card = mlflow.artifacts.download_artifacts(f"models:/{MODEL_NAME}/1/README.md")
    assert Path(card).read_text() == "---\nlibrary_name: onnx\n---\n"
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["recipe.epochs"] == "2"
    assert run.data.metrics["tuning.balanced_accuracy"] == 0.95
    [point] = client.get_metric_history(version.run_id, "member1.tuning_loss")
    assert (point.value, point.step) == (0.4, 1)
    # When the epoch ended, not when the version was registered.
    assert point.timestamp < candidate.members[0].created_at.timestamp() * 1_000
    assert run.info.artifact_uri.startswith((home / "mlflow-artifacts").as_uri())
    decision = client.download_artifacts(version.run_id, "evidence/decision.json")
    assert Decision.model_validate_json(Path(decision).read_bytes()) == made_up_decision("a" * 24)
    model = mlflow.models.get_model_info(f"models:/{MODEL_NAME}/1")
    assert str(model.signature.inputs.inputs[0].shape) == f"(-1, {SIDE}, {SIDE}, 3)"
    example = mlflow.models.Model.load(f"models:/{MODEL_NAME}/1").load_input_example()
    scores = mlflow.pyfunc.load_model(f"models:/{MODEL_NAME}/1").predict(example)["probability"]
    assert scores.shape == (1,)
    # As we score: a GPU would give other last bits.
    assert model.flavors["onnx"]["providers"] == ["CPUExecutionProvider"]


def test_what_is_written_once_stays(registry: Registry, home: Path) -> None:
    assert registry.entries_with_prefix("history.") == {}
    assert registry.put_if_absent("history.000001", "ours") == "ours"
    other = Registry(Settings(home=home))
    assert other.put_if_absent("history.000001", "theirs") == "ours"
    assert other.put_if_absent("history.000002", 'two\nlines, "quotes"') == 'two\nlines, "quotes"'
    assert registry.put_if_absent("answer.000001", "x") == "x"
    assert registry.entries_with_prefix("history.") == {"000001": "ours", "000002": 'two\nlines, "quotes"'}
    with pytest.raises(RetrainError, match="6,001 characters"):
        registry.put_if_absent("history.000003", "x" * 6_001)
    # Before anything is registered, and afterwards, it is the same place.
    register(registry)
    assert Registry(Settings(home=home)).entries_with_prefix("history.")["000001"] == "ours"


def test_a_model_of_an_older_registry_gets_its_history_too(registry: Registry) -> None:
    registry._client.create_registered_model(MODEL_NAME)
    assert registry.entries_with_prefix("history.") == {}
    assert registry.put_if_absent("history.000001", "ours") == "ours"
    assert registry.entries_with_prefix("history.") == {"000001": "ours"}


def test_an_experiment_of_an_older_registry_opens_as_model_training_too(registry: Registry) -> None:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=registry.uri)
    older, chosen = client.create_experiment("nightly"), client.create_experiment("verdicts")
    client.set_experiment_tag(chosen, "mlflow.experimentKind", "genai_development")
    assert (registry._experiment(), registry._experiment("verdicts")) == (older, chosen)
    assert client.get_experiment(older).tags["mlflow.experimentKind"] == "custom_model_development"
    # What a person chose on the page stays.
    assert client.get_experiment(chosen).tags["mlflow.experimentKind"] == "genai_development"


def test_a_version_that_is_not_there_is_a_mistake(registry: Registry) -> None:
    for number in ("1", "no number"):
        with pytest.raises(UsageError, match=f"no version {number}"):
            registry.version(number)


def test_a_model_file_that_is_not_the_candidates_is_not_registered(registry: Registry) -> None:
    with pytest.raises(ModelFileInvalid, match="tampered"):
        registry.register(made_up_candidate(GREEN_MODEL), RED_MODEL, made_up_decision())
    assert registry._client.search_registered_models() == []


def test_a_tampered_model_file_is_never_given_out(registry: Registry, home: Path) -> None:
    champion = register(registry)
    (file,) = (home / "mlflow-artifacts").rglob("*.onnx")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ModelFileInvalid, match=f"registered was {champion.model_sha256}") as caught:
        registry.model_bytes(champion)
    assert "roll back" in caught.value.hint
    file.unlink()
    with pytest.raises((ModelFileInvalid, RegistryUnreachable)):
        registry.model_bytes(champion)


OUTSIDER = f"""
import sys
import mlflow, numpy as np
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/{MODEL_NAME}@champion")
np.save(sys.argv[3], model.predict(np.load(sys.argv[2])))
print([name for name in ("torch", "fastai", "tensorflow", "keras", "infra", "tasks") if name in sys.modules])
"""


def test_anyone_can_load_the_champion_without_us_or_a_framework(registry: Registry, tmp_path: Path) -> None:
    registry.set_champion(register(registry).version)
    # One batch of ours: how cells are batched may change the last bit.
    cells = np.random.default_rng(1).integers(0, 256, (64, SIDE, SIDE, 3)).astype(np.uint8)
    np.save(tmp_path / "cells.npy", cells)
    done = subprocess.run(
        [sys.executable, "-c", OUTSIDER, registry.uri, str(tmp_path / "cells.npy"), str(tmp_path / "scores.npy")],
        cwd=tmp_path,
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    scores = np.load(tmp_path / "scores.npy", allow_pickle=True)
    probabilities = np.asarray(scores.item()["probability"] if scores.dtype == object else scores)
    np.testing.assert_array_equal(probabilities, ModelFile(GREEN_MODEL).score(cells))


def test_a_server_that_is_not_there_is_given_up_soon(home: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(RegistryUnreachable, match="cannot be used") as caught:
        Registry(Settings(home=home, registry=f"http://me:s3cret@127.0.0.1:{port}"))
    # Left to itself MLflow goes on for four minutes; what we wait for is a few seconds of backoff.
    assert time.monotonic() - started < 90
    assert "s3cret" not in str(caught.value)
    assert f"http://***@127.0.0.1:{port}" in str(caught.value)
    assert "RETRAIN_REGISTRY" in caught.value.hint
    assert caught.value.exit_code == 4


def test_a_database_that_cannot_be_used_is_named(tmp_path: Path, home: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "rubbish.db").write_text("no database " * 100)
    (tmp_path / "folder.db").mkdir()
    for path in ("file/mlflow.db", "rubbish.db", "folder.db"):
        with pytest.raises(RegistryUnreachable, match="cannot be used") as caught:
            Registry(Settings(home=home, registry=f"sqlite:///{tmp_path / path}"))
        assert str(tmp_path / path) in str(caught.value)


def test_an_address_of_no_kind_is_refused(home: Path) -> None:
    with pytest.raises(RegistryUnreachable, match="cannot be used"):
        Registry(Settings(home=home, registry="nonsense://x"))


def test_a_database_without_its_driver_is_named(home: Path) -> None:
    with pytest.raises(RegistryUnreachable, match="cannot be used") as caught:
        Registry(Settings(home=home, registry="mssql+pymssql://me:s3cret@db/mlflow"))
    assert "s3cret" not in str(caught.value)


def a_night(**changed: Any) -> Night:
    night = Night(
        id="n" * 24,
        verdict=Verdict.KEPT,
        sentence="The champion stays: no better",
        decision="d" * 24,
        champion_before="3",
        champion_after="3",
        challenger="c" * 24,
        challenger_model="keras",
        metrics={"auc": Interval(value=0.98, low=0.97, high=0.99), "accuracy": None},
        images={"found": 7},
        seconds={"pull": 1.0},
        report=None,
        synthetic=False,
        started_at=NOON,
        finished_at=NOON,
    )
    return night.model_copy(update=changed)


def test_a_night_is_logged_in_mlflow_once_with_its_verdict_and_its_report(registry: Registry) -> None:
    import mlflow

    night = a_night(finished_at=NOON + timedelta(hours=1))
    for _ in range(2):
        registry.note_night(night, b"<p>the report</p>")
    client = mlflow.MlflowClient(tracking_uri=registry.uri)
    found = client.get_experiment_by_name("verdicts")
    experiment = found.experiment_id
    assert found.tags["mlflow.experimentKind"] == "custom_model_development"
    (run,) = client.search_runs([experiment], "tags.verdict = 'kept'")
    assert (run.data.tags["decision"], run.data.tags["champion_after"]) == ("d" * 24, "3")
    assert run.data.metrics["judged.auc.low"] == 0.97
    # As long as the night took, not as long as it took to write this down.
    assert run.info.end_time - run.info.start_time == 3_600_000
    assert run.data.tags["mlflow.source.name"] == "retrain"
    assert "judged.accuracy" not in run.data.metrics
    folder = client.download_artifacts(run.info.run_id, "")
    assert (Path(folder) / "report.html").read_text() == "<p>the report</p>"
    assert Night.model_validate_json((Path(folder) / "night.json").read_text()) == night
    page = f"http://127.0.0.1:8765/reports/{'d' * 24}.html"
    assert run.data.tags["mlflow.note.content"] == f"The champion stays: no better\n\n[Report]({page})"
    # It is no version of the model, and no run that one comes from.
    assert registry.champion() is None


def test_what_the_champion_promised_and_what_was_found_are_on_its_version(registry: Registry) -> None:
    import mlflow

    register(registry)
    found = Interval(value=0.91, low=0.88, high=0.93)
    month = FieldMonth(month="2026-03", patients=14, sensitivity=0.91, specificity=None)
    field = FieldReport(
        version="1", patients=14, cells=500, promised={"sensitivity": found.model_copy(update={"value": 0.95})},
        found={"sensitivity": found}, worse=("sensitivity",), months=(month,),
    )  # fmt: skip
    later = field.model_copy(update={"patients": 20, "worse": ()})
    for number, report in enumerate((field, later)):
        registry.note_night(a_night(id=f"{number}" * 24, field=report), b"")
    client = mlflow.MlflowClient(tracking_uri=registry.uri, registry_uri=registry.uri)
    tags = client.get_model_version(MODEL_NAME, "1").tags
    assert tags["field.sensitivity"] == "0.9500 promised, 0.9100 found (0.8800 to 0.9300)"
    assert tags["field.2026-03"] == "14 patients, sensitivity 0.9100"
    assert (tags["field.patients"], tags["field.worse"]) == ("20", "none")
    experiment = client.get_experiment_by_name("verdicts").experiment_id
    assert {run.data.metrics["field.sensitivity"] for run in client.search_runs([experiment])} == {0.91}


@pytest.mark.parametrize(
    "passing",
    [
        "(sqlite3.OperationalError) database is locked",
        "BAD_REQUEST: (psycopg2.errors.UniqueViolation) duplicate key value violates a constraint",
    ],
)
def test_what_passes_by_itself_is_asked_again(passing: str) -> None:
    from mlflow.exceptions import MlflowException

    answers: list[Exception | str] = [MlflowException(passing), "the answer"]

    def ask() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert call_mlflow("sqlite:///x", ask) == "the answer"


def test_what_does_not_pass_is_asked_once() -> None:
    from mlflow.exceptions import MlflowException

    asked = []

    def ask() -> None:
        asked.append(1)
        raise MlflowException("permission denied")

    with pytest.raises(RegistryUnreachable, match="permission denied"):
        call_mlflow("sqlite:///x", ask)
    assert asked == [1]
