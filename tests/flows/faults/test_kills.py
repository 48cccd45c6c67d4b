"""SIGKILL in the middle of nights: of the night itself, of its trainings, of its Prefect server."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.registry.registry import TRAININGS
from infra.store.folder import FolderStore
from tests.fleet import until
from tests.flows.faults.conftest import Prefect
from tests.nights import Fault, Nights, Told, bring, free_disk
from tests.sound import check_sound, inputs, last_night

pytestmark = [pytest.mark.server, pytest.mark.slow(minutes=1.3)]

# Asks a missing server once; by default Prefect retries for a minute.
IMPATIENT = {"PREFECT_CLIENT_MAX_RETRIES": "0"}


@pytest.fixture(scope="module")
def undisturbed(nights: Nights) -> Told:
    """A night without faults, over the cells that every machine begins with."""
    return nights.run(nights.home("undisturbed"))


@pytest.mark.longest
def test_a_night_killed_at_random_moments_ends_as_if_it_had_never_been(nights: Nights, undisturbed: Told) -> None:
    home = nights.home("killed")
    before = inputs(home)
    rng = random.Random(7)
    kills = 0
    for _ in range(6):
        # A resumed night does less than a whole one.
        moment = rng.randint(1, undisturbed.moments * 2 // 3)
        ended = nights.run(home, fault=Fault(at=moment))
        if ended.code == 0:
            break
        assert ended.code == -signal.SIGKILL, (moment, ended.err)
        kills += 1
        check_sound(home)
    assert kills >= 3
    night = nights.run(home).night
    assert night["decision"] == undisturbed.night["decision"]
    assert night["champion_after"] == "1"
    assert check_sound(home) == ["1"]
    assert inputs(home) == before
    # One look per challenger, however often the night was started.
    looks = list(FolderStore(home / "store").list("retraining/looks/"))
    assert len(looks) == 1


@pytest.mark.longest
def test_the_prefect_server_killed_at_a_random_moment_costs_no_night(
    nights: Nights, prefect: Prefect, undisturbed: Told
) -> None:
    home = nights.home("server-killed")
    before = inputs(home)
    moment = random.Random(11).randint(1, undisturbed.moments)
    ended = nights.run(home, fault=Fault(at=moment, kill=(prefect.pid,)), **IMPATIENT)
    # Prefect only shows the night, which may be complete except for that.
    assert ended.code == 4, (moment, ended.err)
    assert "Prefect's server did not answer in the middle of the night" in ended.err
    assert "run the night again" in ended.err
    assert "unexpected" not in ended.err
    check_sound(home)
    prefect.start_again()
    night = nights.run(home).night
    assert night["decision"] == undisturbed.night["decision"]
    assert check_sound(home) == ["1"]
    assert inputs(home) == before


def test_a_full_disk_under_prefects_database_ends_a_night_that_goes_on_when_there_is_room(
    nights: Nights, prefect: Prefect, undisturbed: Told
) -> None:
    home = nights.home("prefect-full")
    before = inputs(home)
    moment = random.Random(12).randint(1, undisturbed.moments)
    try:
        for at in (moment, 1):  # in the middle, and from the beginning
            ended = nights.run(home, fault=Fault(at=at, full=(prefect.pid,)), **IMPATIENT)
            assert ended.code == 4, (at, ended.err)
            assert "Prefect's server did not answer in the middle of the night" in ended.err
            assert "space on its disk" in ended.err
            assert "unexpected" not in ended.err
            check_sound(home)
    finally:
        free_disk(prefect.pid)
    assert nights.run(home).night["decision"] == undisturbed.night["decision"]
    assert check_sound(home) == ["1"]
    assert inputs(home) == before


def test_trainings_that_diverge_hang_or_are_killed_cost_themselves_and_are_told(nights: Nights) -> None:
    home = nights.home("trainings")
    bad: list[tuple[str, dict[str, Any], str]] = [
        ("fastai", {"behaviour": "diverges"}, "loss became nan in epoch 2"),
        ("keras", {"behaviour": "killed"}, "killed by signal 9 (out of memory, or out of time?)"),
        ("fastai", {"behaviour": "hangs", "deadline_seconds": 0.5}, "did not end within 1.5 s"),
    ]
    for number, (model, behaviour, why) in enumerate(bad, start=1):
        ended = nights.run(home, "run", fault=Fault(patience=1.0), **nights.recipe(model, **behaviour))
        assert ended.code == 0, ended.err
        other = {"fastai": "keras", "keras": "fastai"}[model]
        assert f"{model} could not be trained, and the night continued without it: " in ended.out
        assert why in ended.out
        [report] = [line.removeprefix("report: ") for line in ended.out.splitlines() if line.startswith("report: ")]
        page = Path(report).read_text()
        assert f"The {model} training ended without a model" in page
        assert check_sound(home)[:1] == ["1"]
        night = last_night(home)
        assert night.challenger_model == other
        assert list(night.failed_trainings) == [model]
        bring(home, 4, first=1_000 * number)

    both: dict[str, Any] = {
        **nights.recipe("fastai", behaviour="crashes"),
        **nights.recipe("keras", behaviour="silent"),
    }
    ended = nights.run(home, **both)
    assert ended.code == 1
    assert "no CNN could be trained: fastai: " in ended.err
    assert "ZeroDivisionError" in ended.err
    assert "the champion is untouched; correct the cause and run the night again" in ended.err
    trainings = trainings_of(home)
    assert trainings.pop("night") == ("FAILED", None)
    assert {what: state for what, state in trainings.items() if state[0] == "FAILED"} == {
        f"{model}, member {number}": ("FAILED", loss)
        for model, loss in (("fastai", 0.3), ("keras", None))  # the second said nothing, and left nothing
        for number in (1, 2)
    }
    check_sound(home)

    after = nights.run(home).night
    assert after["verdict"] in ("kept", "undecided", "promoted")
    assert after["failed_trainings"] == {}
    check_sound(home)
    assert trainings_of(home)["night"] == ("FINISHED", None)


def test_a_night_that_is_stopped_ends_all_trainings_that_it_has_begun(nights: Nights) -> None:
    home = nights.home("stopped")
    hanging = {**nights.recipe("fastai", behaviour="hangs"), **nights.recipe("keras", behaviour="hangs")}
    started = nights.start(home, "run", "--json", RETRAIN_TRAINING__AT_ONCE="3", **hanging)
    night = psutil.Process(started[0])

    def training() -> list[psutil.Process]:
        return [child for child in night.children() if "tasks.training.child" in child.cmdline()]

    until(lambda: len(training()) == 3)
    children = training()
    night.send_signal(signal.SIGINT)
    ended = nights.wait(started)
    assert ended.code == 130, ended.err
    assert "stopped" in ended.err
    assert not any(child.is_running() for child in children)
    # Four members, of which now two at a time are trained.
    assert nights.run(home, RETRAIN_TRAINING__AT_ONCE="2").night["verdict"] == "promoted"
    assert check_sound(home) == ["1"]


def trainings_of(home: Path) -> dict[str, tuple[str, float | None]]:
    """What MLflow shows of the trainings of the newest night: status and last loss, by name."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{home / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name(TRAININGS).experiment_id])
    newest = next(run for run in found if run.data.tags["level"] == "night").data.tags["night"]
    named = {run.info.run_name.partition(" of ")[0]: run for run in found if run.data.tags["night"] == newest}
    named["night"] = named.pop(next(name for name in named if name.startswith("night ")))
    return {name: (run.info.status, run.data.metrics.get("tuning_loss")) for name, run in named.items()}
