"""A failed training is reported: as an event that an alert waits for, and on the terminal."""

from __future__ import annotations

from typing import Any

import pytest

from flows.cli import display
from flows.events import GPU_UNUSED, emit_night_events
from flows.unattended.alerts import as_json, definitions
from infra.settings.groups import AlertSettings
from tests.builders import NOON
from validation.records import Night, Verdict

pytestmark = pytest.mark.thorough


@pytest.fixture
def night() -> Night:
    return Night(
        id="n" * 24, verdict=Verdict.KEPT, sentence="The champion stays", decision="d" * 24,
        champion_before="1", champion_after="1", challenger="c" * 24, challenger_model="keras",
        metrics={}, images={}, seconds={}, report="report.html", synthetic=False,
        failed_trainings={"fastai": "loss became nan"}, started_at=NOON, finished_at=NOON,
    )  # fmt: skip


def test_an_alert_waits_for_the_event(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[dict[str, Any]] = []
    monkeypatch.setattr("prefect.events.emit_event", lambda **event: events.append(event))
    emit_night_events(night)
    emit_night_events(night.model_copy(update={"failed_trainings": {}}))
    verdict, failed, _ = events
    assert verdict["payload"]["sentence"] == "The champion stays"
    assert failed["payload"]["sentence"].endswith("the night continued without it: loss became nan")
    alerts = {one.name: as_json(one)["trigger"] for one in definitions(AlertSettings(), None)}
    alert = alerts["malaria: failed training"]
    assert alert["expect"] == [failed["event"]]
    assert alert["match"]["prefect.resource.id"] == failed["resource"]["prefect.resource.id"]
    # It is not a verdict: the watchdog for missing nights must not count it as one.
    assert not failed["event"].startswith(alerts["malaria: no night"]["expect"][0].removesuffix("*"))


def test_a_gpu_that_was_not_used_is_an_event_and_a_line(
    night: Night, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    events: list[dict[str, Any]] = []
    monkeypatch.setattr("prefect.events.emit_event", lambda **event: events.append(event))
    told = night.model_copy(update={"failed_trainings": {}, "unused_gpus": {"keras": "GPU 0 is not used: why"}})
    emit_night_events(told)
    _, unused = events
    assert (unused["event"], unused["resource"]["prefect.resource.name"]) == (GPU_UNUSED, "keras")
    assert unused["payload"]["sentence"] == "keras was trained on the CPU: GPU 0 is not used: why"
    display.verdict(told)
    assert "keras was trained on the CPU: GPU 0 is not used: why" in capsys.readouterr().out


def test_the_terminal_shows_it_beside_the_verdict(night: Night, capsys: pytest.CaptureFixture[str]) -> None:
    display.verdict(night)
    assert "fastai could not be trained, and the night continued without it: loss became nan" in capsys.readouterr().out
