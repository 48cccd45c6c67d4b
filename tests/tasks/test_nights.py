"""Nights and decisions: newest first, whatever else in the store is damaged; and one last good decision."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from infra.store.keys import latest_key, record_key
from infra.store.memory import MemoryStore
from tasks.context import Context
from tasks.nights import decisions, find_decision, find_night, finished_decisions, last_good_decision, nights
from tasks.reporting.exhibits import exhibits
from tests.builders import NOON, Prepared, context_over, made_up_decision
from tests.tasks.test_report import night_of, remember
from validation.errors import RetrainError, UsageError
from validation.records import Decision, Night, Verdict

pytestmark = pytest.mark.thorough


@pytest.fixture
def empty(home: Path) -> Context:
    return context_over(MemoryStore(), home)


def stored(context: Context, id_: str, number: int, verdict: Verdict = Verdict.KEPT) -> Decision:
    """A decision and its finished night, ``number`` minutes after noon."""
    at = NOON + timedelta(minutes=number)
    decision = made_up_decision(id_, verdict=verdict).model_copy(update={"decided_at": at})
    context.records.save(decision, id_)
    remember(context, night_of(decision, number))
    return decision


def damage(context: Context) -> None:
    for kind in (Night.kind, Decision.kind):
        context.store.put(record_key(kind, "damaged"), b'{"id": ')


def test_all_are_listed_newest_first_and_by_finish_not_by_name(empty: Context) -> None:
    made = [stored(empty, id_, number) for id_, number in (("b", 1), ("c", 3), ("a", 2))]
    assert [decision.id for decision in decisions(empty)] == ["c", "a", "b"]
    assert [night.decision for night in nights(empty)] == ["c", "a", "b"]
    empty.records.save(made_up_decision("unfinished"), "unfinished")
    assert list(finished_decisions(empty)) == [made[1], made[2], made[0]]


def test_a_damaged_record_is_named_and_hides_no_other(empty: Context, told: pytest.LogCaptureFixture) -> None:
    made = stored(empty, "abc", 1)
    damage(empty)
    assert find_night(empty, "abc").decision == "abc"
    assert (decisions(empty), last_good_decision(empty)) == ([made], made)
    assert record_key(Night.kind, "damaged") in told.text
    assert record_key(Decision.kind, "damaged") in told.text
    # Pruning must not believe that it knows all references.
    with pytest.raises(RetrainError, match="damaged"):
        decisions(empty, strict=True)


def test_a_damaged_decision_stops_no_later_report(context: Context, prepared: Prepared) -> None:
    tonight = made_up_decision().model_copy(
        update={"snapshot": prepared.snapshot.id, "validation": prepared.validation.id, "candidates": ()}
    )
    damage(context)
    assert exhibits(context, tonight, None, None, ()).id == tonight.id


def test_of_the_nights_of_one_decision_the_newest_is_found(empty: Context) -> None:
    decision = stored(empty, "abc", 1)
    empty.records.save(night_of(decision, 2), "again")
    assert find_night(empty, "ab").id == "night2"


def test_latest_is_found_without_its_pointer(empty: Context) -> None:
    decision = stored(empty, "abc", 1)
    for pointer in (b"{}", b""):
        empty.store.put(latest_key("night"), pointer)
        assert find_night(empty, "latest").decision == "abc"
        assert find_decision(empty, "latest") == decision
    empty.store.delete(latest_key("night"))
    assert find_decision(empty, "latest") == decision
    empty.store.delete(record_key(Night.kind, "night1"))
    with pytest.raises(UsageError, match="no night has come to a decision"):
        find_decision(empty, "latest")


def test_the_last_good_decision_is_the_same_in_the_sentence_and_in_the_exhibits(
    context: Context, prepared: Prepared
) -> None:
    """A kept champion could be used as well as a promoted one; an unusable one and invalid data do not count."""
    verdicts = (Verdict.PROMOTED, Verdict.KEPT, Verdict.CHAMPION_UNUSABLE, Verdict.INVALID_DATA)
    for number, verdict in enumerate(verdicts, start=1):
        stored(context, f"{number}" * 24, number, verdict)
    good = last_good_decision(context)
    assert good is not None
    assert good.id == "2" * 24
    tonight = made_up_decision(verdict=Verdict.CHAMPION_UNUSABLE).model_copy(
        update={
            "snapshot": prepared.snapshot.id, "validation": prepared.validation.id, "candidates": (),
            "decided_at": NOON + timedelta(hours=1),
        }
    )  # fmt: skip
    assert exhibits(context, tonight, None, None, ()).last_good == good.id
    before = last_good_decision(context, NOON + timedelta(minutes=2))
    assert before is not None
    assert before.id == "1" * 24
    assert last_good_decision(context, NOON) is None
