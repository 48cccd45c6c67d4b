"""Trainings, from the night's side: on workers found, retried, awaited and cancelled; here several at once.

Prefect's server is a fake that keeps runs; the real one is in test_up.py and test_production.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from flows import train
from flows.train import train_remotely, trainings
from infra.prefect_api import PrefectServer
from infra.processes.driver import VISIBLE
from tasks.context import Context
from tasks.training import places
from tests.builders import CountingStore, context_over, made_up_member
from validation.digest import digest
from validation.errors import TrainingFailed, Unreachable
from validation.records import Member, Pack, Split, TrainSpec

SPEC = TrainSpec(model="fastai", member=1, split="5" * 24, side=16, seed=1, recipe={"epochs": 2}, recipe_version=1)
ID = digest(SPEC.model_dump(mode="json"))
# Only handed on: a worker reads the split from the store and builds the pack itself.
SPLIT, PACK = cast(Split, None), cast(Pack, None)
MEMBER = made_up_member(1).model_copy(update={"id": ID})


class FakePrefect(PrefectServer):
    """Stores runs; ``outcome`` is the state of each new one when it is requested."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:1/api")
        self.kept: dict[str, dict[str, Any]] = {}
        self.outcome: Callable[[dict[str, Any]], str] = lambda run: "COMPLETED"
        self.cancelled: list[str] = []
        self.away = 0

    def add(self, key: str, state: str) -> dict[str, Any]:
        self.kept[key] = {"id": key, "name": f"run {key[-1]}", "state_type": state}
        self._tell(self.kept[key], state)
        return self.kept[key]

    def _tell(self, run: dict[str, Any], state: str) -> None:
        run.update(state_type=state, state={"type": state, "name": state.title(), "message": f"it is {state}"})

    def create(self, name: str, *, parameters: dict[str, Any], idempotency_key: str, **options: Any) -> Any:
        assert name == "train/fastai"
        assert parameters == {"spec": SPEC.model_dump(mode="json")}
        assert options == {"timeout": 0, "as_subflow": True, "flow_run_name": "train fastai 2"}
        return SimpleNamespace(id=self.add(idempotency_key, "SCHEDULED")["id"])

    def runs(
        self,
        *,
        deployment: str | None = None,
        states: Iterable[str] = (),
        tags: Iterable[str] = (),
        key: str | None = None,
        limit: int = 200,
    ) -> list[dict[str, Any]]:
        return [self.kept[key]] if key in self.kept else []

    def run(self, id_: str) -> dict[str, Any]:
        run = self.kept[id_]
        if run["state_type"] != "SCHEDULED" and self.away:
            self.away -= 1
            raise Unreachable("started again just now")
        if run["state_type"] in ("SCHEDULED", "RUNNING"):
            self._tell(run, "RUNNING" if run["state_type"] == "SCHEDULED" else self.outcome(run))
        return run

    def set_state(self, run: str, type_: str, name: str, message: str, *, force: bool = False) -> str:
        self.cancelled.append(run)
        assert (type_, force) == ("CANCELLING", False)
        return type_


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakePrefect:
    made = FakePrefect()
    monkeypatch.setattr(train, "PrefectServer", lambda url: made)
    monkeypatch.setattr(train, "run_deployment", made.create)
    monkeypatch.setattr(train, "POLL_SECONDS", 0.01)
    monkeypatch.setenv("PREFECT_API_URL", made.url)
    return made


@pytest.fixture
def context(home: Path, server: FakePrefect) -> Context:
    """A context in which a completed run has stored its member."""
    made = context_over(CountingStore(), home)

    def complete(run: dict[str, Any]) -> str:
        made.records.save(MEMBER, ID)
        return "COMPLETED"

    server.outcome = complete
    return made


def test_a_member_that_is_there_needs_no_run(server: FakePrefect, context: Context) -> None:
    context.store.put(MEMBER.model_key, b"model")
    context.records.save(MEMBER, ID)
    assert train_remotely(context, SPEC).id == ID
    assert server.kept == {}


def test_a_training_is_sent_once_and_its_member_returned(server: FakePrefect, context: Context) -> None:
    assert train_remotely(context, SPEC) == context.records.load(Member, ID)
    assert list(server.kept) == [f"train-{ID}-1"]


def test_one_that_runs_since_an_earlier_night_was_killed_is_awaited(server: FakePrefect, context: Context) -> None:
    server.add(f"train-{ID}-1", "RUNNING")
    assert train_remotely(context, SPEC).id == ID
    assert list(server.kept) == [f"train-{ID}-1"]


@pytest.mark.parametrize("state", ["FAILED", "CRASHED", "CANCELLED", "COMPLETED"])
def test_one_that_ended_without_a_member_is_tried_again(server: FakePrefect, context: Context, state: str) -> None:
    server.add(f"train-{ID}-1", state)
    assert train_remotely(context, SPEC).id == ID
    assert list(server.kept) == [f"train-{ID}-1", f"train-{ID}-2"]


def test_a_failure_is_reported_and_not_retried_tonight(server: FakePrefect, context: Context) -> None:
    server.outcome = lambda run: "FAILED"
    with pytest.raises(TrainingFailed, match="trains fastai, member 2, is Failed: it is FAILED"):
        train_remotely(context, SPEC)
    assert len(server.kept) == 1


def test_a_crashed_run_gets_a_second_try_and_no_third(server: FakePrefect, context: Context) -> None:
    server.outcome = lambda run: "CRASHED"
    with pytest.raises(TrainingFailed, match="Crashed"):
        train_remotely(context, SPEC)
    assert len(server.kept) == 2


def test_a_run_that_takes_too_long_is_cancelled(server: FakePrefect, home: Path) -> None:
    context = context_over(CountingStore(), home, training={"deployment_timeout_seconds": 0.05})
    server.outcome = lambda run: "RUNNING"
    with pytest.raises(TrainingFailed, match="cancelled") as caught:
        train_remotely(context, SPEC)
    assert server.cancelled == [f"train-{ID}-1"]
    assert "DEPLOYMENT_TIMEOUT" in caught.value.hint


def test_a_restart_of_the_server_costs_nothing(server: FakePrefect, context: Context) -> None:
    server.away = 3
    assert train_remotely(context, SPEC).id == ID


def test_a_night_that_is_stopped_does_not_wait_and_cancels_nothing(server: FakePrefect, home: Path) -> None:
    context = context_over(CountingStore(), home, training={"where": "deployment"})
    server.outcome = lambda run: "RUNNING"
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), trainings(context, [SPEC], SPLIT, PACK) as sent:
        raise KeyboardInterrupt
    with pytest.raises(TrainingFailed, match="stopped"):
        sent["fastai", 1].result()
    assert server.cancelled == []
    assert threading.active_count() == before


def test_all_members_are_sent_at_once(home: Path, server: FakePrefect, monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_over(CountingStore(), home, training={"where": "deployment"})
    specs = [SPEC.model_copy(update={"member": member}) for member in range(5)]
    together = threading.Barrier(len(specs), timeout=60)

    def create(name: str, *, parameters: dict[str, Any], idempotency_key: str, **_: Any) -> Any:
        # No run is created before all are about to be.
        together.wait()
        member = made_up_member(parameters["spec"]["member"])
        id_ = digest(parameters["spec"])
        context.records.save(member.model_copy(update={"id": id_}), id_)
        return SimpleNamespace(id=server.add(idempotency_key, "COMPLETED")["id"])

    monkeypatch.setattr(train, "run_deployment", create)
    with trainings(context, specs, SPLIT, PACK) as sent:
        members = [sent["fastai", member].result().spec.member for member in range(5)]
    assert members == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("gpus", "count"), [("", 2), ("0,1,2", 3)])
def test_here_as_many_members_are_trained_at_once_as_have_room(
    gpus: str, count: int, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VISIBLE, gpus)
    monkeypatch.setattr(places, "_cores", lambda: 4)
    context = context_over(CountingStore(), home, training={"at_once": None})
    specs = [SPEC.model_copy(update={"member": member}) for member in range(2 * count)]
    together, lock, most = threading.Barrier(count, timeout=60), threading.Lock(), [0, 0]
    given: list[dict[str, str]] = []

    def one(_: Context, spec: TrainSpec, *rest: Any) -> Member:
        with lock:
            most[0] += 1
            most[1] = max(most)
            given.append(dict(rest[2]))
        together.wait()  # none ends before so many have begun
        with lock:
            most[0] -= 1
        return made_up_member(spec.member)

    monkeypatch.setattr(train, "train_task", one)
    with trainings(context, specs, SPLIT, PACK) as begun:
        members = [begun["fastai", spec.member].result().spec.member for spec in specs]
    assert members == list(range(2 * count))
    assert most[1] == count
    if gpus:
        assert sorted(each[VISIBLE] for each in given[:count]) == ["0", "1", "2"]
    else:
        assert (
            {each["OMP_NUM_THREADS"] for each in given} == {each["TF_NUM_INTRAOP_THREADS"] for each in given} == {"2"}
        )


@pytest.mark.parametrize(
    ("cores", "gib", "asked", "count"),
    [(1, 64, None, 1), (2, 64, None, 1), (8, 64, None, 4), (8, 7, None, 2), (8, 1, None, 1), (2, 64, 2, 2)],
)
def test_how_many_have_room_follows_from_cores_and_memory(
    cores: int, gib: int, asked: int | None, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VISIBLE, "")
    monkeypatch.setattr(places, "_cores", lambda: cores)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=gib * 2**30))
    assert places.at_once(asked) == count


def test_without_a_server_it_says_what_to_do(home: Path, server: FakePrefect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL")
    monkeypatch.setattr("prefect.settings.get_current_settings", lambda: SimpleNamespace(api=SimpleNamespace(url=None)))
    with pytest.raises(TrainingFailed, match="no Prefect server"):
        train_remotely(context_over(CountingStore(), home), SPEC)
