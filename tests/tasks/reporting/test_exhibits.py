"""The ledger that a report shows: the looks that shared one budget with its own."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tasks.context import Context
from tasks.judging.ledger import LedgerEntry
from tasks.reporting.exhibits import DAMAGED, exhibits
from tests.builders import NOON, Prepared, made_up_decision
from validation.records import Look

pytestmark = pytest.mark.thorough


def entry(number: int, days_ago: float | None) -> LedgerEntry:
    look = None
    if days_ago is not None:
        look = Look(
            number=number, challenger="a", champion="b", spent=0.002, looked_at=NOON - timedelta(days=days_ago)
        )  # fmt: skip
    spent = look.spent if look else None
    return LedgerEntry(number=number, pair="", look=look, spent=spent, problem="" if look else "unreadable")


@pytest.mark.usefixtures("registry")
def test_looks_of_a_year_are_shown_and_a_damaged_one_as_spent(
    context: Context, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [entry(1, 366), entry(2, 364), entry(3, None), entry(4, 0), entry(5, -1)]
    monkeypatch.setattr("tasks.reporting.exhibits.read_ledger", lambda *_: entries)
    decision = made_up_decision().model_copy(
        update={"snapshot": prepared.snapshot.id, "validation": prepared.validation.id}
    )
    shown = exhibits(context, decision, None, None, ())
    assert [look.number for look in shown.ledger] == [2, 3, 4]
    damaged = shown.ledger[1]
    assert damaged.challenger == DAMAGED
    assert damaged.spent == pytest.approx(0.05 / 24)
    assert any("Look 3" in line and "unreadable" in line for line in shown.left_out)
