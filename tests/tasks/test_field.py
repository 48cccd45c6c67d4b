"""The field: patients that are new to the champion are scored by it once, before anything is trained on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flows.events import FIELD_WORSE, emit_night_events
from infra.registry.registry import Registry
from infra.scoring.model_file import ModelFile
from tasks.cells.cell_data import load_cells
from tasks.champion.history import ChampionChange, append_change
from tasks.choose import prepare_contest
from tasks.context import Context
from tasks.decide import Evidence, decide
from tasks.evaluate import evaluate
from tasks.field import field_report, score_field
from tests.builders import NOON, Prepared, candidate_of, channel_member, plain_cells, prepare
from validation.records import ChampionRef, Evaluation, FieldNight, FieldReport, Interval, Night, Start, Verdict

pytestmark = pytest.mark.thorough


@pytest.fixture
def champion(context: Context, prepared: Prepared, registry: Registry) -> ChampionRef:
    """A champion that was promoted on an evaluation: right about every cell."""
    candidate = candidate_of(context, prepared, channel_member())
    start = Start(id="night", champion=None, started_at=NOON)
    contest = prepare_contest(context, [candidate], start, registry, prepared.split, prepared.pack)
    judged = evaluate(context, contest, prepared.split, prepared.pack, registry)
    assert isinstance(judged, Evaluation)
    evidence = Evidence(prepared.snapshot, prepared.validation, prepared.split, (candidate,), {}, contest, judged)
    decision = decide(context, evidence)
    assert decision.verdict is Verdict.PROMOTED
    version = registry.register(candidate, context.store.get(candidate.model_key), decision, judged)
    return append_change(context, registry, ChampionChange("promoted", "a test", decision.id, None, version, "w", "c"))


def arrive(context: Context, patients: int, *, first: int, swapped: bool = False) -> Prepared:
    """Let new patients arrive; ``swapped``: each cell is filed under the other class."""
    for key, data in plain_cells(patients, 6, seed=first, first=first).items():
        names = ("Parasitized", "Uninfected")
        old, new = names if names[0] in key else names[::-1]
        context.store.put(key.replace(old, new) if swapped else key, data)
    return prepare(context)


def test_without_new_patients_there_is_nothing_to_report(
    context: Context, prepared: Prepared, registry: Registry, champion: ChampionRef
) -> None:
    assert score_field(context, registry, champion, prepared.split, prepared.pack) is None
    assert score_field(context, registry, None, prepared.split, prepared.pack) is None
    assert context.records.ids(FieldNight) == []


def test_new_patients_are_scored_once_by_the_deployed_file(
    context: Context, registry: Registry, champion: ChampionRef
) -> None:
    later = arrive(context, 5, first=300)
    report = score_field(context, registry, champion, later.split, later.pack)
    assert report is not None
    assert (report.patients, report.cells, report.worse) == (5, 30, ())
    cells = load_cells(context, later.split, later.pack)
    new = cells.take(np.array([name.startswith("C30") for name in cells.patients]))
    calls = ModelFile(registry.model_bytes(champion)).score(new.images) >= champion.threshold
    assert report.found["sensitivity"].value == pytest.approx((calls & new.labels).sum() / new.labels.sum())
    assert report.promised["sensitivity"].value == 1.0
    assert [month.patients for month in report.months] == [5]
    # Again, and with more cells of the same patients: no patient counts twice.
    assert score_field(context, registry, champion, later.split, later.pack) == report
    for key, data in plain_cells(5, 8, seed=9, first=300).items():
        context.store.put(key, data)
    again = prepare(context)
    assert score_field(context, registry, champion, again.split, again.pack) == report
    assert len(context.records.ids(FieldNight)) == 1
    more = arrive(context, 3, first=400)
    both = score_field(context, registry, champion, more.split, more.pack)
    assert both is not None
    assert both.patients == 8
    assert field_report(context, registry, champion) == both


def test_a_champion_that_is_worse_than_promised_raises_the_alarm(
    context: Context, registry: Registry, champion: ChampionRef
) -> None:
    later = arrive(context, 12, first=300, swapped=True)
    report = score_field(context, registry, champion, later.split, later.pack)
    assert report is not None
    assert set(report.worse) == {"sensitivity", "specificity"}
    assert "cannot be what was promised" in report.sentence


def test_the_alarm_is_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[dict[str, Any]] = []
    monkeypatch.setattr("prefect.events.emit_event", lambda **event: events.append(event))
    rate = Interval(value=0.9, low=0.8, high=1.0)
    report = FieldReport(
        version="1", patients=40, cells=400, promised={"sensitivity": rate}, found={"sensitivity": rate}, worse=()
    )
    night = Night(
        id="n" * 24, verdict=Verdict.KEPT, sentence="The champion stays", decision="d" * 24, champion_before="1",
        champion_after="1", challenger=None, challenger_model=None, metrics={}, images={}, seconds={}, report=None,
        synthetic=False, field=report, started_at=NOON, finished_at=NOON,
    )  # fmt: skip
    emit_night_events(night)
    assert FIELD_WORSE not in [event["event"] for event in events]
    emit_night_events(night.model_copy(update={"field": report.model_copy(update={"worse": ("sensitivity",)})}))
    [alarm] = [event for event in events if event["event"] == FIELD_WORSE]
    assert "sensitivity cannot be what was promised" in alarm["payload"]["sentence"]
