"""The ledger: a look is spent before its result is known, once a pair, and never more than the budget of a year."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from infra.registry.registry import Registry
from infra.settings.settings import Settings
from infra.store.keys import look_key
from infra.store.memory import MemoryStore
from tasks.champion.history import reconcile_champion
from tasks.commands.describe_looks import describe_looks
from tasks.context import Context
from tasks.judging.ledger import ENTRY, LedgerEntry, next_free, pair_of, read_ledger, take_look
from tests.builders import NOON, CountingStore, context_over, with_settings
from validation.errors import LedgerSpent, StoreUnreachable
from validation.records import Look
from validation.rules import GateRules

pytestmark = pytest.mark.thorough

LEVEL = 0.05 / 24
DAY = timedelta(days=1)


@pytest.fixture
def context(home: Path) -> Context:
    return context_over(MemoryStore(), home)


def set_clock(monkeypatch: pytest.MonkeyPatch, moment: datetime) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return moment.astimezone(tz)

    for module in ("tasks.judging.ledger", "tasks.commands.describe_looks"):
        monkeypatch.setattr(f"{module}.datetime", Clock)


def test_the_same_pair_looks_once(context: Context, registry: Registry) -> None:
    first = take_look(context, registry, "a", "champion")
    assert take_look(context, registry, "a", "champion") == first
    # The same spec on another machine may come to other bytes: that is another challenger.
    assert take_look(context, registry, "a, by another processor", "champion").number == 2
    assert take_look(context, registry, "a", "another champion").number == 3
    entries = read_ledger(context, registry)
    assert [(entry.number, entry.cost(9), entry.problem) for entry in entries] == [(n, LEVEL, "") for n in (1, 2, 3)]
    assert entries[0].look == first


def test_when_the_budget_is_spent_no_look_is_taken_until_one_is_a_year_old(
    context: Context, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = with_settings(context, gate={"looks": 2})
    begin = datetime(2026, 3, 1, 2, 30, tzinfo=UTC)
    set_clock(monkeypatch, begin)
    assert take_look(context, registry, "first", None).spent == 0
    a = take_look(context, registry, "a", "champion")
    set_clock(monkeypatch, begin + 30 * DAY)
    assert a.spent + take_look(context, registry, "b", "champion").spent == pytest.approx(0.05)
    with pytest.raises(LedgerSpent, match=r"2 looks were taken .* 2 are allowed.* next look is free on 2027-03-01"):
        take_look(context, registry, "c", "champion")
    assert len(read_ledger(context, registry)) == 3
    assert describe_looks(context, registry)["next_is_free"] == "2027-03-01"
    assert take_look(context, registry, "a", "champion") == a
    assert take_look(context, registry, "another first", None).spent == 0
    set_clock(monkeypatch, begin + 365 * DAY)
    assert take_look(context, registry, "c", "champion").number == 5
    # Its first look is no longer paid for.
    with pytest.raises(LedgerSpent):
        take_look(context, registry, "a", "champion")


def test_a_clock_that_is_set_back_lets_no_look_expire_early(
    context: Context, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime(2026, 6, 1, tzinfo=UTC)
    set_clock(monkeypatch, now)
    take_look(context, registry, "a", "champion")
    set_clock(monkeypatch, now - 500 * DAY)
    assert take_look(context, registry, "b", "champion").looked_at == now
    # One in the future counts.
    assert describe_looks(context, registry)["looks_taken"] == 2


def test_what_looks_cost_counts_and_not_their_number_alone(context: Context, registry: Registry) -> None:
    """Fewer looks cost more each: the setting may change, the budget stays."""
    for name in "abcdefghijklmno":
        take_look(context, registry, name, "champion")  # 15 of 24: 0.03125 is spent
    few = with_settings(context, gate={"looks": 20, "error_budget": 0.05})
    for name in "pqrst":
        take_look(few, registry, name, "champion")
    dear = with_settings(context, gate={"looks": 100, "error_budget": 0.0438})
    with pytest.raises(LedgerSpent, match=r"of the error budget 0\.0438 is spent"):
        take_look(dear, registry, "u", "champion")


def test_when_the_next_look_is_free() -> None:
    today = datetime(2026, 6, 1, tzinfo=UTC)

    def entry(number: int, day: int) -> LedgerEntry:
        look = Look(number=number + 1, challenger="a", champion="b", spent=0.1, looked_at=today - day * DAY)
        return LedgerEntry(number + 1, "", look, look.spent)

    rules = GateRules(error_budget=0.4, looks=4)
    assert next_free([], rules, today) == today
    assert next_free([entry(n, 100) for n in range(3)], rules, today) == today
    assert next_free([entry(n, 365) for n in range(9)], rules, today) == today
    full = [entry(n, day) for n, day in enumerate((364, 200, 100, 50))]
    assert next_free(full, rules, today) == today + DAY
    assert next_free([*full, entry(9, 10)], rules, today) == today + 165 * DAY
    assert next_free([entry(1, -700), *full[1:]], rules, today) == today + 165 * DAY
    unknown = [LedgerEntry(n, "", None, None, "damaged") for n in range(4)]
    assert next_free(unknown, rules, today) is None
    assert next_free([*unknown[:3], entry(1, 100)], rules, today) == today + 265 * DAY


# --- what is deleted, edited or damaged ----------------------------------------------------------------------------


@pytest.fixture
def spent(context: Context, registry: Registry) -> Context:
    """A ledger of three looks, with nothing left."""
    context = with_settings(context, gate={"looks": 3})
    for name in "abc":
        take_look(context, registry, name, "champion")
    return context


def key(number: int) -> str:
    return look_key(number, pair_of("abc"[number - 1], "champion"))


def check_still_spent(context: Context, registry: Registry, *problems: str) -> None:
    assert [entry.problem for entry in read_ledger(context, registry) if entry.problem] == list(problems)
    facts = describe_looks(context, registry)
    assert [line.partition(": ")[2] for line in facts["problems"]] == list(problems)
    assert facts["looks_left"] == 0
    with pytest.raises(LedgerSpent, match="3 looks were taken"):
        take_look(context, registry, "d", "champion")


def test_a_look_deleted_from_the_store_is_spent_named_and_written_again(
    spent: Context, registry: Registry, told: pytest.LogCaptureFixture
) -> None:
    whole = spent.store.get(key(2))
    spent.store.delete(key(2))
    check_still_spent(spent, registry, "the store has none")
    assert "look 2 counts as spent: the store has none" in told.text
    for repair in (lambda: take_look(spent, registry, "a", "champion"), lambda: reconcile_champion(spent, registry)):
        spent.store.delete(key(2))
        repair()
        assert spent.store.get(key(2)) == whole
    assert not any(entry.problem for entry in read_ledger(spent, registry))


def test_a_deleted_store_brings_no_look_back(spent: Context, registry: Registry) -> None:
    for number in (1, 2, 3):
        spent.store.delete(key(number))
    check_still_spent(spent, registry, *["the store has none"] * 3)


def test_a_lost_or_replaced_registry_brings_no_look_back(spent: Context, tmp_path: Path, empty_registry: Path) -> None:
    shutil.copy(empty_registry, tmp_path / "other.db")
    other = Registry(Settings(home=tmp_path, registry=f"sqlite:///{tmp_path / 'other.db'}"))
    check_still_spent(spent, other, *["the registry has none"] * 3)
    # Its own first look has the next number.
    rich = with_settings(spent, gate={"looks": 9, "error_budget": 0.3})
    assert take_look(rich, other, "d", "champion").number == 4


@pytest.mark.parametrize(
    "edit",
    [{"spent": 1e-9}, {"spent": 0.0}, {"spent": 0.0, "champion": None}, {"looked_at": "2001-01-01T00:00:00Z"}],
    ids=str,
)
def test_an_edited_look_costs_what_it_did(edit: dict[str, Any], spent: Context, registry: Registry) -> None:
    spent.store.put(key(1), json.dumps({**json.loads(spent.store.get(key(1))), **edit}).encode())
    damaged = "champion" in edit or edit.get("spent") == 0
    problem = "what the store has is damaged" if damaged else "the registry and the store differ"
    check_still_spent(spent, registry, problem)


def test_an_edited_registry_costs_what_it_did(spent: Context, registry: Registry, home: Path) -> None:
    change_parameter(home, f"{ENTRY}000001", lambda text: text.replace(str(0.05 / 3), "1e-9"))
    change_parameter(home, f"{ENTRY}000002", lambda text: text[:30])
    check_still_spent(spent, registry, "the registry and the store differ", "what the registry has is damaged")


def change_parameter(home: Path, name: str, edit: Callable[[str], str]) -> None:
    """Edit what MLflow holds to be immutable, as its database's owner can."""
    with closing(sqlite3.connect(home / "mlflow.db")) as database, database:
        (text,) = database.execute("SELECT value FROM params WHERE key = ?", (name,)).fetchone()
        database.execute("UPDATE params SET value = ? WHERE key = ?", (edit(text), name))


def test_a_truncated_look_is_spent_and_its_own_pair_pays_no_more(spent: Context, registry: Registry) -> None:
    spent.store.put(key(1), spent.store.get(key(1))[:40])
    check_still_spent(spent, registry, "what the store has is damaged")
    assert take_look(spent, registry, "a", "champion").number == 1


def test_what_can_be_read_nowhere_counts_for_ever(
    context: Context, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = with_settings(context, gate={"looks": 2})
    context.store.put(look_key(3, "ab"), b"")
    registry.put_if_absent(f"{ENTRY}000007", "{")
    set_clock(monkeypatch, datetime(2050, 1, 1, tzinfo=UTC))
    assert [entry.number for entry in read_ledger(context, registry)] == [3, 7]
    with pytest.raises(LedgerSpent, match="looks that cannot be read use it up"):
        take_look(context, registry, "a", "champion")


def test_a_look_placed_before_its_pair_meets_costs_as_much_as_any(context: Context, registry: Registry) -> None:
    """By the owner of the bucket, or of the registry, so that the coming look should be free."""
    old, now = datetime(2001, 1, 1, tzinfo=UTC), datetime.now(UTC)
    for number, (name, moment) in enumerate((("a", now), ("b", old), ("c", old)), start=1):
        forged = Look(number=number, challenger=name, champion="champion", spent=1e-12, looked_at=moment)
        if name == "c":
            registry.put_if_absent(f"{ENTRY}{number:06d}", forged.model_dump_json())
        else:
            context.store.put(look_key(number, pair_of(name, "champion")), forged.model_dump_json().encode())
    assert [take_look(context, registry, name, "champion").number for name in "abc"] == [1, 4, 5]
    facts = describe_looks(context, registry)
    assert (facts["looks_taken"], facts["error_budget_spent"]) == (3, pytest.approx(3 * LEVEL))


class DeafStore(CountingStore):
    """A store that gives out no look, and may not answer at all."""

    gone = False

    def get(self, key: str) -> bytes:
        if "/looks/" in key:
            raise StoreUnreachable("permission denied")
        return super().get(key)

    def check(self) -> None:
        if self.gone:
            raise StoreUnreachable("no route to host")


def test_an_unreadable_look_is_spent_and_a_store_that_is_gone_ends_the_night(home: Path, registry: Registry) -> None:
    store = DeafStore({look_key(1, "ab"): b"{}"})
    context = context_over(store, home)
    (entry,) = read_ledger(context, registry)
    assert (entry.number, entry.look, entry.cost(0.05)) == (1, None, 0.05)
    store.gone = True
    with pytest.raises(StoreUnreachable):
        read_ledger(context, registry)


def test_looks_of_before_are_of_another_design(context: Context, registry: Registry) -> None:
    old = {"generation": "g1", "number": 1, "challenger": "a", "champion": "b", "spent": 0.1, "looked_at": "2026-01-01"}
    context.store.put("retraining/looks/g1/0001-ab.json", json.dumps(old).encode())
    assert read_ledger(context, registry) == []


def test_ten_years_of_looks_and_history_fit_into_the_registry(
    context: Context, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """240 looks, 240 seals and 60 champions."""
    from mlflow.entities import Param

    set_clock(monkeypatch, NOON + 365 * DAY)
    stored = []
    for number in range(1, 241):
        look = Look(number=number, challenger=f"{number:064d}", champion="0" * 64, spent=LEVEL, looked_at=NOON)
        stored.append(Param(f"{ENTRY}{number:06d}", look.model_dump_json(indent=2)))
        stored.append(Param(f"evaluation.{number:024d}", "x" * 160))
        if number <= 60:
            stored.append(Param(f"history.{number:06d}", "x" * 1_500))
    for first in range(0, len(stored), 100):
        registry._client.log_batch(registry._ledger_run(), params=stored[first : first + 100])
    assert len(read_ledger(context, registry)) == 240
    assert take_look(context, registry, "a", "champion").number == 241
