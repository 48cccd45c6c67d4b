"""Report: built from records alone, the same page at any time on any machine; and finding a night."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path

import pytest

from infra.registry.registry import Registry
from infra.store.keys import INDEX, record_key, report_key
from tasks.choose import prepare_contest
from tasks.context import Context
from tasks.decide import Evidence, decide
from tasks.evaluate import evaluate
from tasks.nights import find_night
from tasks.report import report, report_again, report_path, show_answer
from tests.builders import (
    NOON,
    RED,
    Prepared,
    candidate_of,
    channel_member,
    context_over,
    made_up_decision,
)
from tests.tasks.conftest import Crown
from validation.errors import ObjectMissing, UsageError
from validation.records import (
    ApprovalAnswer,
    Candidate,
    Decision,
    Evaluation,
    Night,
    Split,
    Start,
    ValidationResult,
    Verdict,
)

pytestmark = pytest.mark.thorough


def night_of(decision: Decision, number: int = 1) -> Night:
    return Night(
        id=f"night{number}",
        verdict=decision.verdict,
        sentence=decision.sentence,
        decision=decision.id,
        champion_before=None,
        champion_after="1",
        challenger=decision.challenger,
        challenger_model="fastai",
        metrics={},
        images={"found": 360, "new": 360, "gone": 0, "accepted": 360, "rejected": 0, "without_patient": 0},
        seconds={"pull": 1.5, "train fastai": 60.0},
        report=None,
        synthetic=False,
        started_at=NOON,
        finished_at=NOON + timedelta(minutes=number),
    )


def remember(context: Context, night: Night) -> None:
    context.records.save(night, night.id)
    context.records.point("night", night)


@pytest.fixture
def night(context: Context, prepared: Prepared, registry: Registry, crown: Crown) -> Night:
    """A night with everything in it: two candidates, a champion, an evaluation."""
    crown(candidate_of(context, prepared, channel_member(RED), name="keras", seed=2))
    candidates = (
        candidate_of(context, prepared, channel_member(), name="fastai"),
        candidate_of(context, prepared, channel_member(RED), name="keras"),
    )
    start = Start(id="night1", champion=registry.champion(), started_at=NOON)
    contest = prepare_contest(context, candidates, start, registry, prepared.split, prepared.pack)
    evaluation = evaluate(context, contest, prepared.split, prepared.pack, registry)
    assert isinstance(evaluation, Evaluation), evaluation
    evidence = Evidence(prepared.snapshot, prepared.validation, prepared.split, candidates, {}, contest, evaluation)
    return night_of(decide(context, evidence))


def test_a_report_is_in_the_store_and_on_this_machine(context: Context, night: Night) -> None:
    path = report(context, night)
    assert night.decision
    assert path == report_path(context, night.decision)
    assert path.is_relative_to(context.workspace.home)
    page = path.read_bytes()
    assert context.store.get(report_key(night.decision)) == page
    text = page.decode()
    assert night.decision in text
    assert night.sentence.split(";")[0] in text
    assert "60 judging patients" in text


def test_the_same_night_is_the_same_page_later_and_on_another_machine(
    context: Context, night: Night, tmp_path: Path
) -> None:
    remember(context, night)
    assert night.decision
    page = report(context, night).read_bytes()
    # Its night now has the duration of the report, and only the store is left of the rest.
    finished = night.model_copy(update={"seconds": {**night.seconds, "report": 2.0}})
    remember(context, finished)
    machine = context_over(context.store, tmp_path / "elsewhere")
    assert report(machine, find_night(machine, night.decision)).read_bytes() == page
    assert context.store.get(report_key(night.decision)) == page


def test_a_night_that_ended_early_has_a_report_too(context: Context, prepared: Prepared) -> None:
    checks = tuple(check.model_copy(update={"passed": False}) for check in prepared.validation.checks)
    validation = prepared.validation.model_copy(update={"checks": checks, "id": "bad"})
    context.records.save(validation, "bad")
    decision = decide(context, Evidence(prepared.snapshot, validation))
    assert decision.verdict is Verdict.INVALID_DATA
    text = report(context, night_of(decision)).read_text()
    assert "must not be trained on" in text


def test_a_night_that_found_nothing_new_has_a_page_that_leads_to_the_report_in_force(
    context: Context, night: Night
) -> None:
    in_force = report(context, night).read_bytes()
    again = night.model_copy(
        update={"verdict": Verdict.NOTHING_NEW, "sentence": "Nothing new since yesterday (then: kept)", "metrics": {}}
    )
    path = report_again(context, again)
    text = path.read_text()
    assert context.store.get(report_key(path.stem)) == path.read_bytes()
    assert f'href="{night.decision}.html"' in text
    assert "Nothing new since yesterday (then: kept)." in text
    assert "The store holds 360 labelled images, the same as at the last snapshot." in text
    assert report_path(context, night.decision or "").read_bytes() == in_force


def test_an_answer_is_on_the_report_and_the_index(context: Context, night: Night) -> None:
    remember(context, night)
    assert night.decision
    report(context, night)
    answer = ApprovalAnswer(decision=night.decision, answer="reject", who="Ann", why="stain", at=NOON)
    context.records.save(answer, night.decision)
    show_answer(context, night.decision)
    assert b"As of 2026-01-02 12:00 UTC, by Ann: stain." in context.store.get(report_key(night.decision))
    assert b"Rejected by Ann" in context.store.get(report_key(INDEX))


def test_an_answer_whose_report_cannot_be_built_stands(context: Context, caplog: pytest.LogCaptureFixture) -> None:
    show_answer(context, "d" * 24)
    assert "does not show its answer" in caplog.text


def test_the_link_to_the_data_docs_leads_to_them(context: Context, night: Night) -> None:
    path = report(context, night)
    (link,) = re.findall(r'href="([^"]+\.docs\.html)"', path.read_text())
    docs = (path.parent / link).resolve()
    validation = context.records.load(Decision, night.decision or "").validation
    key = context.records.load(ValidationResult, validation).data_docs
    assert key is not None
    assert docs.read_bytes() == context.store.get(key)
    assert validation in docs.read_text()
    (back,) = re.findall(r'href="([^"]+)"', docs.read_text())
    assert (docs.parent / back).resolve() == (path.parent / "index.html").resolve()


def of_version_0_1(context: Context, decision: str) -> None:
    """Turn a stored decision, and the records that it rests on, into what version 0.1 stored."""
    for record, ids in ((Decision, [decision]), (Candidate, None), (Split, None), (Evaluation, None)):
        for id_ in ids or context.records.ids(record):
            fields = json.loads(context.store.get(record_key(record.kind, id_)))
            fields.pop("form", None)
            fields.pop("members", None)
            fields |= {"generation": "g1"}
            context.store.put(record_key(record.kind, id_), json.dumps(fields).encode())


def test_a_report_of_version_0_1_is_kept_as_it_was(
    context: Context, night: Night, tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    assert night.decision
    of_version_0_1(context, night.decision)
    key = report_key(night.decision)
    context.store.put(key, b"the page of 0.1")
    machine = context_over(context.store, tmp_path / "elsewhere")
    for _ in range(2):
        path = report(machine, night)
        assert path == report_path(machine, night.decision)
        assert path.read_bytes() == machine.store.get(key) == b"the page of 0.1"
    assert "written by an earlier version" in told.text
    assert str(path) in told.text
    assert key in told.text
    # Where the store has lost it, this machine's copy is left.
    machine.store.delete(key)
    assert report(machine, night).read_bytes() == b"the page of 0.1"
    path.unlink()
    with pytest.raises(ObjectMissing, match="written by an earlier version") as caught:
        report(machine, night)
    assert key in caught.value.message


def test_a_night_that_found_nothing_new_after_one_of_version_0_1_has_its_page(context: Context, night: Night) -> None:
    assert night.decision
    of_version_0_1(context, night.decision)
    again = night.model_copy(update={"verdict": Verdict.NOTHING_NEW, "sentence": "Nothing new since yesterday"})
    assert f'href="{night.decision}.html"' in report_again(context, again).read_text()


def test_a_night_without_a_decision_has_none(context: Context) -> None:
    with pytest.raises(UsageError, match="no report"):
        report(context, night_of(made_up_decision()).model_copy(update={"decision": None}))


def test_a_night_is_found_by_its_decision(context: Context) -> None:
    nights = [night_of(made_up_decision(id_), number) for number, id_ in enumerate(("abc1", "abd2", "f003"), start=1)]
    with pytest.raises(UsageError, match="no night has come to a decision") as caught:
        find_night(context, "latest")
    assert "retrain run" in caught.value.hint
    for night in nights:
        context.records.save(made_up_decision(night.decision or ""), night.decision or "")
        remember(context, night)
    assert find_night(context, "latest") == nights[2]
    assert find_night(context, "abd2") == nights[1]
    assert find_night(context, "f") == nights[2]
    with pytest.raises(UsageError, match="2 decisions begin with 'ab'"):
        find_night(context, "ab")
    for unknown in ("zzz", "../abc1", "abc1x"):
        with pytest.raises(UsageError, match="no decisions begin with") as caught:
            find_night(context, unknown)
        assert "latest" in caught.value.hint


def test_a_decision_whose_night_was_killed_says_so(context: Context) -> None:
    context.records.save(made_up_decision("abc"), "abc")
    with pytest.raises(ObjectMissing, match="was not finished") as caught:
        find_night(context, "abc")
    assert "retrain run" in caught.value.hint
