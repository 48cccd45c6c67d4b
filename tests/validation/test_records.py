"""Records: frozen, strict, and the same after a journey through JSON."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from pydantic import ValidationError

from validation import records
from validation.records import (
    ApprovalAnswer,
    ApprovalRequest,
    Candidate,
    CellCount,
    ChampionRef,
    Check,
    Decision,
    EpochRecord,
    Evaluation,
    Exhibits,
    FieldMonth,
    FieldNight,
    FieldReport,
    Finding,
    Gate,
    Interval,
    Look,
    Member,
    Metrics,
    Night,
    Pack,
    PastNight,
    Promotion,
    Record,
    Retired,
    Snapshot,
    Split,
    Spread,
    Start,
    TrainSpec,
    ValidationResult,
    Verdict,
)

AT = datetime(2026, 3, 14, 2, 0, 0, 123456, tzinfo=UTC)
INTERVAL = Interval(value=0.9371, low=0.91, high=1 / 3 + 0.6, level=0.9958)
FINDING = Finding(reason="truncated", key="labeled/Parasitized/ä'<b>\u202e.png", detail="ends after 312 bytes")
CHECK = Check(name="class ratio", expected="at most 20", observed="3", passed=True, severity="invalid")
COUNT = CellCount(patients=3, positive=20, negative=30)
SPEC = TrainSpec(
    model="keras",
    member=2,
    split="s1",
    side=64,
    seed=1,
    recipe={"lr": 1e-3, "flips": True, "sizes": [1, 2]},
    recipe_version=1,
)
EPOCH = EpochRecord(epoch=1, train_loss=0.5, valid_loss=0.4, valid_accuracy=0.8, seconds=12.5)
METRICS = Metrics(
    cells=50, patients=3, threshold=0.4375, tp=18, fp=2, tn=28, fn=2, accuracy=INTERVAL, balanced_accuracy=INTERVAL,
    auc=None, sensitivity=INTERVAL, specificity=INTERVAL, log_loss=0.21,
)  # fmt: skip
CHAMPION = ChampionRef(version="7", candidate="c0", model="fastai", model_sha256="ab" * 32, threshold=0.47, since=AT)
LOOK = Look(number=3, challenger="cd" * 32, champion="ab" * 32, spent=0.05 / 24, looked_at=AT)
GATE = Gate(
    name="AUC floor", value=0.98, low=None, high=None, bound=0.9, level=None, passed=True, sentence="AUC is 0.98"
)
MEMBER = Member(
    id="m1", spec=SPEC, model_key="retraining/m.onnx", model_sha256="cd" * 32, model_bytes=42_213_112,
    weights_key="retraining/m.keras", weights_sha256="ef" * 32, history=(EPOCH,), best_epoch=1, stopped="early",
    train_cells=400, train_patients=20, tuning_patients=3, versions={"keras": "3.15.1"}, device="CPU", seconds=431.2,
    peak_memory_mb=2_210.5, created_at=AT,
)  # fmt: skip
CANDIDATE = Candidate(
    id="c1", model="keras", split="s1", side=64, members=(MEMBER,), missing={1: "killed"},
    model_key="retraining/c.onnx", model_sha256="cd" * 32, model_bytes=213_112, threshold=0.44, tuning=METRICS,
    train_patients=20, train_patients_digest="p1", created_at=AT,
)  # fmt: skip

FIELD_MONTH = FieldMonth(month="2026-03", patients=4, sensitivity=0.9, specificity=None)
PAST = PastNight(
    decision="6", at=AT, verdict=Verdict.KEPT, version="7", model="keras", balanced_accuracy=INTERVAL, sensitivity=None,
    specificity=INTERVAL,
)  # fmt: skip
SAMPLES: list[Record] = [
    FINDING, CHECK, COUNT, SPEC, EPOCH, INTERVAL, METRICS, CHAMPION, LOOK, GATE, MEMBER, CANDIDATE,
    Spread(error=0.012, effective_patients=17.5),
    Snapshot(id="1", parent=None, table="t", objects=2, bytes=10, by_class={"Parasitized": 2}, patients=1,
             without_patient=0, new=2, gone=0, created_at=AT),
    ValidationResult(id="2", snapshot="1", facts="f", findings="g", images=2, accepted=1, rejected=1,
                     by_class={"Parasitized": 1}, patients=1, without_patient=0, reasons={"truncated": 1},
                     examples=(FINDING,), checks=(CHECK,)),
    Split(id="3", validation="2", table="t", folds=(COUNT, COUNT), without_patient=1),
    Pack(id="4", split="3", side=64, cells=50, pixels="ab"),
    Evaluation(id="5", split="3", challenger="c1", challenger_sha256="cd" * 32, challenger_threshold=0.44,
               champion=CHAMPION, look=LOOK, predictions="p", judged="j", counts={"challenger": "k"},
               challenger_metrics=METRICS, champion_metrics=None, differences={"auc": INTERVAL}),
    Decision(id="6", verdict=Verdict.AWAITING_APPROVAL, sentence="A person decides", snapshot="1", validation="2",
             split=None, candidates=("c1", "c2"), failed_trainings={"keras": "diverged"}, challenger="c1",
             champion_before=CHAMPION, tuning={"champion": METRICS}, evaluation=None, gates=(GATE,),
             further_patients=12, synthetic=False, decided_at=AT),
    Promotion(number=1, decision="6", version_before=None, version_after="8", why="better", at=AT),
    ApprovalRequest(decision="6", challenger="c1", champion=CHAMPION, sentence="better", requested_at=AT,
                    expires_at=AT),
    ApprovalAnswer(decision="6", answer="reject", who="ann@lab", why="too few patients", at=AT),
    Start(id="7", champion=None, started_at=AT),
    Night(id="8", verdict=Verdict.KEPT, sentence="The champion stays", decision="6", champion_before="7",
          champion_after="7", challenger="c1", challenger_model="keras", metrics={"auc": INTERVAL, "accuracy": None},
          images={"accepted": 1}, seconds={"pull": 0.5}, report=None, synthetic=True, started_at=AT, finished_at=AT),
    PAST,
    Exhibits(id="6", cells="c", counts={"new": 3}, ledger=(LOOK,), looks=24, error_budget=0.05, past=(PAST,),
             last_good="5", left_out=("one cell was removed",)),
    FieldNight(id="9", champion="ab" * 32, split="3", patients=4, table="t", at=AT),
    FIELD_MONTH,
    FieldReport(version="7", patients=4, cells=50, promised={"sensitivity": INTERVAL}, found={"sensitivity": INTERVAL},
                worse=("sensitivity",), months=(FIELD_MONTH,)),
    Retired(decision="6", why="older than 400 days", at=AT),
]  # fmt: skip
each_record = pytest.mark.parametrize("record", SAMPLES, ids=lambda record: type(record).__name__)


def kinds(base: type[Record] = Record) -> set[type[Record]]:
    return {kind for sub in base.__subclasses__() if sub.__module__ == records.__name__ for kind in (sub, *kinds(sub))}


def test_every_kind_of_record_is_tested_here() -> None:
    assert {type(record) for record in SAMPLES} == kinds()


def test_no_two_kinds_of_stored_records_share_a_folder() -> None:
    folders = [kind.kind for kind in kinds() if "kind" in vars(kind)]
    assert len(folders) == len(set(folders))
    assert "record" not in folders


@each_record
def test_a_record_comes_back_from_json_equal(record: Record) -> None:
    text = record.model_dump_json()
    again = type(record).model_validate_json(text)
    assert again == record
    assert again.model_dump_json() == text
    # A child process or a Prefect result brings plain values instead of text.
    assert type(record).model_validate(json.loads(text)) == record


@each_record
def test_a_record_is_frozen(record: Record) -> None:
    before = record.model_dump_json()
    for name in type(record).model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(record, name, getattr(record, name))
    assert record.model_dump_json() == before


@each_record
def test_an_unknown_field_is_refused_by_name(record: Record) -> None:
    with pytest.raises(ValidationError, match="surprise"):
        type(record).model_validate({**record.model_dump(), "surprise": 1})


@each_record
def test_a_missing_field_is_refused_by_name(record: Record) -> None:
    first = next(name for name, field in type(record).model_fields.items() if field.is_required())
    with pytest.raises(ValidationError, match=first):
        type(record).model_validate(record.model_dump(exclude={first}))


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_survives_as_strict_json(loss: float) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = EPOCH.model_copy(update={"valid_loss": loss}).model_dump_json()
    json.loads(text, parse_constant=refuse)
    assert str(EpochRecord.model_validate_json(text).valid_loss) == str(loss)


def test_a_time_keeps_its_moment_whatever_its_zone() -> None:
    there = AT.astimezone(timezone(timedelta(hours=5, minutes=30)))
    again = Start.model_validate_json(Start(id="7", champion=None, started_at=there).model_dump_json())
    assert again.started_at == AT


def test_a_night_that_was_stored_before_it_held_its_settings_is_read() -> None:
    night = next(record for record in SAMPLES if isinstance(record, Night))
    assert Night.model_validate(night.model_dump(exclude={"settings"})).settings == {}


@pytest.mark.parametrize(("kind", "field"), [(Decision, "sentence"), (Night, "sentence"), (Promotion, "why")])
def test_a_stored_sentence_claims_no_more_than_was_tested(kind: type[Record], field: str) -> None:
    stored = next(record for record in SAMPLES if isinstance(record, kind)).model_dump()
    stored[field] = "The challenger is better than the champion, and worse in nothing that matters"
    read = getattr(kind.model_validate(stored), field)
    assert "nothing that matters" not in read
    assert "not worse by more than the margins" in read


def test_verdicts_are_the_words_that_people_read() -> None:
    assert [verdict.value for verdict in Verdict] == [
        "promoted", "kept", "undecided", "awaiting approval", "champion unusable",
        "nothing new", "invalid data",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("checks", "valid"),
    [
        ((), True),
        ((CHECK,), True),
        ((CHECK.model_copy(update={"passed": False}),), False),
        ((CHECK.model_copy(update={"passed": False, "severity": "warn"}),), True),
        ((CHECK, CHECK.model_copy(update={"passed": False})), False),
    ],
)
def test_only_a_decisive_check_makes_a_batch_invalid(checks: tuple[Check, ...], valid: bool) -> None:
    result = next(record for record in SAMPLES if isinstance(record, ValidationResult))
    assert result.model_copy(update={"checks": checks}).valid is valid


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (CellCount, {"patients": -1, "positive": 0, "negative": 0}),
        (Pack, {"id": "4", "split": "3", "side": 0, "cells": 50, "pixels": "ab"}),
        (Check, {**CHECK.model_dump(), "severity": "fatal"}),
        (EpochRecord, {**EPOCH.model_dump(), "epoch": 0}),
        (Look, {**LOOK.model_dump(), "number": 0}),
        (Member, {**MEMBER.model_dump(), "stopped": "killed"}),
    ],
)
def test_impossible_values_are_refused(kind: type[Record], values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(values)


def test_cells_of_a_side_are_those_of_both_classes() -> None:
    assert COUNT.cells == 50
