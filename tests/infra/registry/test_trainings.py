"""Every training in MLflow: what a person compares there, and that nothing else rests on it."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from infra.registry.registry import EXPERIMENT, TRAININGS, Registry
from infra.registry.trainings import Tried
from infra.store.keys import CHALLENGER_ALIAS, CHAMPION_ALIAS, MODEL_NAME
from tests.builders import NOON, channel_model, made_up_candidate, made_up_decision, registry_in
from tests.infra.registry.test_registry import a_night
from validation.errors import RegistryUnreachable, TrainingFailed
from validation.records import Candidate, EpochRecord, TrainSpec

pytestmark = pytest.mark.thorough

DAY = f"{NOON:%Y-%m-%d}"
AT = f"{NOON:%Y-%m-%d %H:%M}"
FAILED = {"keras, member 4": "loss became nan", "keras, member 5": "killed by signal 9"}


@pytest.fixture
def registry(home: Path, empty_registry: Path) -> Registry:
    return registry_in(home, empty_registry)


def trained(name: str, letter: str, members: int) -> Candidate:
    """A candidate whose members took three epochs of a minute, with pauses between them."""
    made = made_up_candidate(channel_model(), name=name, id_=letter * 24)
    missing = {fold: FAILED[f"{name}, member {fold + 1}"] for fold in range(members, 5)}
    epochs = tuple(
        EpochRecord(
            epoch=number, train_loss=0.6 / number, train_accuracy=0.8, valid_loss=0.5 / number, valid_accuracy=0.9,
            learning_rate=1e-3, seconds=60, ended_at=NOON + timedelta(seconds=70 * number),
        )
        for number in (1, 2, 3)
    )  # fmt: skip
    times = {"started_at": NOON, "created_at": NOON + timedelta(seconds=240), "seconds": 230.0, "history": epochs}
    return made.model_copy(
        update={
            "missing": missing,
            "members": tuple(
                member.model_copy(update={"id": f"{letter}{number}" * 12, "batch_size": 8, **times})
                for number, member in enumerate(made.members[:members])
            ),
        }
    )


FASTAI, KERAS = trained("fastai", "c", 5), trained("keras", "d", 3)
NIGHT = a_night(challenger=FASTAI.id, challenger_model="fastai", failed_trainings=FAILED)


def runs(registry: Registry) -> dict[str, Any]:
    """All runs of the trainings' experiment, by name."""
    client = registry._client
    found = client.search_runs([client.get_experiment_by_name(TRAININGS).experiment_id])
    named = {run.info.run_name: run for run in found}
    assert len(named) == len(found)
    return named


def test_each_member_of_both_cnns_is_a_run_below_its_night(registry: Registry) -> None:
    for _ in range(2):
        registry.note_trainings(NIGHT, [FASTAI, KERAS])
    found = runs(registry)
    fastai = {f"fastai {number}/5 of {AT}" for number in range(1, 6)}
    keras = {f"keras {number}/5 of {AT}" for number in range(1, 4)}
    failed = {f"keras, member {number} of {AT}" for number in (4, 5)}
    assert set(found) == {f"night {AT}", *fastai, *keras, *failed}
    night = found[f"night {AT}"]
    below = fastai | keras | failed
    assert {found[name].data.tags["mlflow.parentRunId"] for name in below} == {night.info.run_id}
    assert night.data.tags["verdict"] == "kept"
    assert {found[name].data.tags["outcome"] for name in fastai} == {"kept"}
    assert {found[name].data.tags["outcome"] for name in keras} == {"not chosen"}
    assert {found[name].info.status for name in failed} == {"FAILED"}
    assert found[f"keras, member 5 of {AT}"].data.tags["mlflow.note.content"] == "killed by signal 9"
    experiment = registry._client.get_experiment(night.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_a_run_has_its_curves_at_their_true_times_and_what_made_them(registry: Registry) -> None:
    registry.note_trainings(NIGHT, [FASTAI, KERAS])
    run = runs(registry)[f"keras 2/5 of {AT}"]
    assert (run.info.start_time, run.info.end_time) == (ms(0), ms(240))
    curve = registry._client.get_metric_history(run.info.run_id, "tuning_loss")
    assert [(point.step, point.timestamp, point.value) for point in curve] == [
        (number, ms(70 * number), 0.5 / number) for number in (1, 2, 3)
    ]
    assert {"train_loss", "train_accuracy", "tuning_accuracy", "learning_rate"} <= run.data.metrics.keys()
    assert (run.data.metrics["seconds"], run.data.metrics["train_cells"]) == (230, 10)
    given = run.data.params
    assert (given["cnn"], given["member"], given["seed"], given["recipe.epochs"], given["batch_size"]) == (
        *("keras", "2", "2", "2", "8"),
    )
    tags = run.data.tags
    assert tags["device"] == "cpu"
    assert tags["mlflow.source.git.commit"]
    assert tags["version.framework"] == "1.0"
    [data] = run.inputs.dataset_inputs
    assert (data.dataset.digest, data.tags[0].value) == ("5" * 24, "training")
    assert json.loads(data.dataset.source)["uri"].endswith(f"retraining/splits/{'5' * 24}.json")
    assert json.loads(data.dataset.profile) == {"num_rows": 10, "patients": 2}


def test_a_member_from_before_times_were_recorded_has_them_added_up(registry: Registry) -> None:
    member = made_up_candidate(channel_model()).members[0]
    old = FASTAI.model_copy(update={"members": (member,)})
    registry.note_trainings(NIGHT, [old])
    run = runs(registry)[f"fastai 1/1 of {AT}"]
    assert (run.info.start_time, run.info.end_time) == (ms(-0.2), ms(0))
    [point] = registry._client.get_metric_history(run.info.run_id, "train_loss")
    assert point.timestamp == ms(-0.1)


def test_a_curve_of_more_points_than_one_write_takes_is_whole(registry: Registry) -> None:
    member = FASTAI.members[0]
    many = [member.history[0].model_copy(update={"epoch": number}) for number in range(1, 301)]
    long = FASTAI.model_copy(update={"members": (member.model_copy(update={"history": tuple(many)}),)})
    registry.note_trainings(NIGHT, [long])
    run = runs(registry)[f"fastai 1/1 of {AT}"].info.run_id
    assert [point.step for point in registry._client.get_metric_history(run, "tuning_accuracy")] == list(range(1, 301))


def test_candidates_are_models_named_by_cnn_and_night(registry: Registry) -> None:
    registry.note_trainings(NIGHT, [FASTAI, KERAS])
    client = registry._client
    experiment = client.get_experiment_by_name(TRAININGS).experiment_id
    models = {model.name: model for model in client.search_logged_models([experiment])}
    assert set(models) == {f"fastai-{DAY}", f"keras-{DAY}"}
    keras = models[f"keras-{DAY}"]
    assert keras.tags["file"].endswith(KERAS.model_key)
    assert {metric.key: metric.value for metric in keras.metrics}["keras.tuning.auc"] == 0.95
    registry.register(FASTAI, channel_model(), made_up_decision())
    registered = client.search_logged_models([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    assert [model.name for model in registered] == [f"fastai-{DAY}"]


def test_a_night_that_was_killed_there_is_completed_and_nothing_twice(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, logged = registry._client, []
    log_batch = client.log_batch

    def killed(run: str, *args: Any, **kwargs: Any) -> None:
        logged.append(run)
        if len(logged) == 4:
            raise OSError("killed")
        log_batch(run, *args, **kwargs)

    with monkeypatch.context() as dying:
        dying.setattr(client, "log_batch", killed)
        with pytest.raises(RegistryUnreachable, match="killed"):
            registry.note_trainings(NIGHT, [FASTAI, KERAS])
    before = runs(registry)
    assert before[f"night {AT}"].info.status == "RUNNING"
    registry.note_trainings(NIGHT, [FASTAI, KERAS])
    found = runs(registry)
    assert len(found) == 11
    assert found[f"night {AT}"].info.status == "FINISHED"
    assert found[f"night {AT}"].info.run_id == before[f"night {AT}"].info.run_id
    # The one that died is completed too.
    assert found[f"fastai 4/5 of {AT}"].info.status == "FINISHED"
    assert found[f"fastai 4/5 of {AT}"].data.metrics["tuning_loss"] == 0.5 / 3


def broken(number: int) -> tuple[TrainSpec, TrainingFailed]:
    """A training of Keras that was killed in its third epoch."""
    spec = KERAS.members[0].spec.model_copy(update={"member": number - 1})
    error = TrainingFailed(FAILED[f"keras, member {number}"])
    return spec, error.after(KERAS.members[0].history[:2], NOON, NOON + timedelta(seconds=150))


def test_a_night_without_a_cnn_is_there_with_its_curves_and_is_completed_when_it_is_run_again(
    registry: Registry,
) -> None:
    undecided = NIGHT.model_copy(
        update={"decision": None, "challenger": None, "failed_trainings": {}, "sentence": "no CNN could be trained"}
    )
    tried = Tried(list(KERAS.members[:2]), [broken(4), broken(5)])
    for _ in range(2):
        registry.note_trainings(undecided, [], tried)
    found = runs(registry)
    failed = {f"keras, member {number} of {AT}" for number in (4, 5)}
    assert set(found) == {f"night {AT}", f"keras 1/4 of {AT}", f"keras 2/4 of {AT}", *failed}
    night = found[f"night {AT}"]
    assert (night.info.status, night.data.tags["verdict"]) == ("FAILED", "failed")
    assert night.data.tags["mlflow.note.content"] == "no CNN could be trained"
    assert found[f"keras 2/4 of {AT}"].data.tags["outcome"] == "too few members"
    last = found[f"keras, member 5 of {AT}"]
    assert (last.info.status, last.info.start_time, last.info.end_time) == ("FAILED", ms(0), ms(150))
    assert (last.data.params["member"], last.data.params["recipe.epochs"]) == ("5", "2")
    curve = registry._client.get_metric_history(last.info.run_id, "tuning_loss")
    assert [(point.step, point.timestamp, point.value) for point in curve] == [(1, ms(70), 0.5), (2, ms(140), 0.25)]
    # Nothing else would ever remove them.
    assert sorted(registry.abandoned_runs()) == sorted(run.info.run_id for run in found.values())

    registry.note_trainings(NIGHT, [KERAS])
    again = runs(registry)
    assert {run.data.tags["decision"] for run in again.values()} == {NIGHT.decision}
    assert again[f"night {AT}"].info.run_id == night.info.run_id
    assert again[f"night {AT}"].info.status == "FINISHED"
    assert again[f"keras 2/4 of {AT}"].data.tags["candidate"] == KERAS.id
    assert registry.abandoned_runs() == []


def test_members_of_a_cnn_of_which_too_few_were_left_are_there(registry: Registry) -> None:
    failed = {"keras": "3 of 5 members could not be trained"}
    night = NIGHT.model_copy(update={"failed_trainings": failed})
    registry.note_trainings(night, [FASTAI], Tried([*FASTAI.members, *KERAS.members[:2]], [broken(4), broken(5)]))
    found = runs(registry)
    assert found[f"keras 1/4 of {AT}"].data.metrics["tuning_loss"] == 0.5 / 3
    assert found[f"keras, member 4 of {AT}"].data.metrics["tuning_loss"] == 0.25
    assert found[f"keras of {AT}"].data.tags["mlflow.note.content"] == failed["keras"]
    assert len(found) == 1 + 5 + 2 + 2 + 1


def test_whatever_happens_on_that_page_the_history_stays(registry: Registry) -> None:
    registry.set_champion(registry.register(FASTAI, channel_model(), made_up_decision()).version)
    registry.put_if_absent("history.1", "entry")
    registry.note_trainings(NIGHT, [FASTAI, KERAS])
    # Pruning names none of them, and the person at the page deletes all.
    assert registry.abandoned_runs() == []
    client = registry._client
    client.delete_experiment(client.get_experiment_by_name(TRAININGS).experiment_id)
    assert registry.entries_with_prefix("history.") == {"1": "entry"}
    champion = registry.champion()
    assert champion is not None
    assert registry.model_bytes(champion) == channel_model()
    registry.note_trainings(a_night(id="m" * 24), [KERAS])
    assert f"night {AT}" in {run.info.run_name for run in all_runs(registry)}


def test_they_go_with_the_report_of_their_decision(registry: Registry) -> None:
    registry.note_trainings(NIGHT, [FASTAI])
    later = a_night(id="m" * 24, decision="f" * 24)
    registry.note_trainings(later, [KERAS])
    registry.delete_report_page(str(NIGHT.decision))
    left = runs(registry)
    assert {run.data.tags["decision"] for run in left.values()} == {"f" * 24}
    assert len(left) == 4
    client = registry._client
    models = client.search_logged_models([client.get_experiment_by_name(TRAININGS).experiment_id])
    assert [model.name for model in models] == [f"keras-{DAY}"]


def test_a_registered_version_is_the_challenger_until_it_is_champion(registry: Registry) -> None:
    def aliases() -> dict[str, str]:
        found = registry._client.get_registered_model(MODEL_NAME).aliases
        return {alias: str(version) for alias, version in found.items()}

    first = registry.register(FASTAI, channel_model(), made_up_decision("a" * 24))
    assert aliases() == {CHALLENGER_ALIAS: "1"}
    registry.set_champion(first.version)
    assert aliases() == {CHAMPION_ALIAS: "1"}
    registry.register(KERAS, channel_model(), made_up_decision("b" * 24))
    assert aliases() == {CHAMPION_ALIAS: "1", CHALLENGER_ALIAS: "2"}
    # Back to another version, as a rollback does: what waited still waits.
    registry.set_champion(first.version)
    assert aliases() == {CHAMPION_ALIAS: "1", CHALLENGER_ALIAS: "2"}


def all_runs(registry: Registry) -> list[Any]:
    client = registry._client
    return list(client.search_runs([client.get_experiment_by_name(TRAININGS).experiment_id]))


def ms(seconds: float) -> int:
    """A moment so long after noon, as MLflow has it."""
    return int((NOON + timedelta(seconds=seconds)).timestamp() * 1_000)
