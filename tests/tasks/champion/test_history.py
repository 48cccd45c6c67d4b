"""The history: entries are only added, the champion follows from them, and what was begun is finished."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from infra.registry.registry import Registry
from infra.store.keys import history_key, proposal_key
from tasks.champion.history import (
    ENTRY,
    ChampionChange,
    append_change,
    champion_at,
    champion_lineage,
    checked_why,
    history,
    reconcile_champion,
    untouched_history,
)
from tasks.commands.describe_champion import describe_champion, describe_history
from tasks.context import Context
from tests.builders import NOON, channel_model, made_up_candidate, made_up_decision
from validation.digest import digest
from validation.errors import ChampionChanged, ChampionUnusable, RetrainError, UsageError
from validation.records import ChampionRef, Promotion

pytestmark = pytest.mark.thorough

MODEL = channel_model()


def register(registry: Registry, decision: str) -> ChampionRef:
    return registry.register(made_up_candidate(MODEL), MODEL, made_up_decision(decision))


def change(before: ChampionRef | None, after: ChampionRef, decision: str = "d", **values: Any) -> ChampionChange:
    given = {"action": "promoted", "who": "somebody", "why": "it is better", "checked": "equal", **values}
    return ChampionChange(decision=decision, before=before, after=after, **given)


def entry(number: int, version: str, action: Any = "promoted", before: str | None = None, **values: Any) -> Promotion:
    given = {"decision": f"d{number}", "why": "w", "at": NOON + timedelta(hours=number), **values}
    return Promotion(number=number, action=action, version_before=before, version_after=version, **given)


def decide(context: Context, registry: Registry, made: Promotion) -> None:
    """Let another process propose and decide an entry, and be killed then."""
    text = made.model_dump_json(indent=2)
    context.store.put(proposal_key(made.number, digest(text)), text.encode())
    registry.put_if_absent(f"{ENTRY}{made.number:06d}", text)


def test_entries_follow_each_other_and_the_alias_follows_them(context: Context, registry: Registry) -> None:
    first, second = register(registry, "d1"), register(registry, "d2")
    append_change(context, registry, change(None, first, "d1"))
    append_change(context, registry, change(first, second, "d2", action="override", who="ann@lab"))
    assert registry.champion() == second
    entries = [(e.number, e.action, e.who, e.version_before, e.version_after, e.decision) for e in history(context)]
    assert entries == [(1, "promoted", "somebody", None, "1", "d1"), (2, "override", "ann@lab", "1", "2", "d2")]


def test_a_clock_that_is_behind_never_makes_the_history_run_backwards(context: Context, registry: Registry) -> None:
    first, second = register(registry, "d1"), register(registry, "d2")
    ahead = datetime.now(UTC) + timedelta(hours=3)
    kept = entry(1, first.version, decision="d1", at=ahead)
    decide(context, registry, kept)
    reconcile_champion(context, registry)
    append_change(context, registry, change(first, second, "d2"))
    assert [e.at for e in history(context)] == [ahead, ahead]
    assert champion_at(history(context), ahead).version_after == second.version


def test_who_was_decided_first_wins_and_the_other_hears_of_it(context: Context, registry: Registry) -> None:
    first, second = register(registry, "d1"), register(registry, "d2")
    rival = entry(1, second.version, decision="d2", who="the other night", at=NOON)
    decide(context, registry, rival)
    # The other one was killed just after its entry was decided: neither store nor alias know of it yet.
    assert (history(context), registry.champion()) == ([], None)
    with pytest.raises(ChampionChanged, match=r"has changed .* version 2 \(the other night, 2026-01-02 12:00:00 UTC\)"):
        append_change(context, registry, change(None, first, "d1"))
    assert registry.champion() == second
    assert history(context) == [rival]


def test_the_same_promotion_by_another_machine_that_was_killed_before_the_alias_moved_is_finished(
    context: Context, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = register(registry, "d1"), register(registry, "d2")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "set_champion", killed)
        with pytest.raises(KeyboardInterrupt):
            append_change(context, registry, change(None, theirs, "d1"))
    assert (len(history(context)), registry.champion()) == (1, None)
    assert append_change(context, registry, change(None, ours, "d1")) == theirs
    assert registry.champion() == theirs
    assert len(history(context)) == 1


def test_an_alias_that_was_moved_by_hand_is_moved_back(
    context: Context, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = register(registry, "d1"), register(registry, "d2")
    append_change(context, registry, change(None, first, "d1"))
    registry.set_champion(second.version)
    with caplog.at_level("INFO"):
        assert describe_champion(context, registry)["version"] == "2"
        assert "the history ends with version 1" in caplog.text
        assert reconcile_champion(context, registry) == first
    assert "the alias `champion` now points to version 1 (before: 2)" in caplog.text
    assert registry.champion() == first


def test_a_champion_from_before_the_history_is_left_where_it_is(context: Context, registry: Registry) -> None:
    champion = register(registry, "d1")
    registry.set_champion(champion.version)
    assert reconcile_champion(context, registry) == champion


def decided(context: Context, registry: Registry, made: Promotion) -> None:
    text = made.model_dump_json()
    registry.put_if_absent(f"{ENTRY}{made.number:06d}", text)
    context.store.put(history_key(made.number), text.encode())


def test_an_entry_of_the_store_alone_makes_no_champion(context: Context, registry: Registry) -> None:
    """A challenger that was registered and refused, and an entry that whoever may write to the bucket has put there."""
    register(registry, "d1")
    context.store.put(history_key(1), entry(1, "1").model_dump_json().encode())
    for ask in (reconcile_champion, untouched_history):
        with pytest.raises(ChampionUnusable, match="has no history: it was lost, or it is another one"):
            ask(context, registry)
    assert registry.champion() is None


def test_a_registry_that_lost_the_champion_is_named_not_replaced(context: Context, registry: Registry) -> None:
    decided(context, registry, entry(1, "7"))
    with pytest.raises(RetrainError, match="version 7 is champion, but: no version 7") as caught:
        reconcile_champion(context, registry)
    assert "restore the registry" in caught.value.hint


def test_another_registry_with_as_many_versions_is_noticed(context: Context, registry: Registry) -> None:
    register(registry, "another one")
    decided(context, registry, entry(1, "1"))
    with pytest.raises(RetrainError, match="by decision d1; the registry's is of decision another one"):
        reconcile_champion(context, registry)
    assert registry.champion() is None


def test_a_damaged_entry_is_named_and_can_be_had_again(context: Context, registry: Registry) -> None:
    champion = append_change(context, registry, change(None, register(registry, "d1"), "d1"))
    whole = context.store.get(history_key(1))
    context.store.put(history_key(1), whole[:40])
    with pytest.raises(RetrainError, match=r"retraining/history/000001\.json .* damaged") as caught:
        history(context)
    assert "move retraining/history/000001.json away" in caught.value.hint
    del context.store.objects[history_key(1)]  # type: ignore[attr-defined]
    assert reconcile_champion(context, registry) == champion
    assert context.store.get(history_key(1)) == whole


def test_a_rewritten_entry_is_noticed(context: Context, registry: Registry) -> None:
    append_change(context, registry, change(None, register(registry, "d1"), "d1"))
    forged = history(context)[0].model_copy(update={"who": "nobody"})
    context.store.put(history_key(1), forged.model_dump_json(indent=2).encode())
    with pytest.raises(RetrainError, match=r"history/000001\.json .* was changed"):
        reconcile_champion(context, registry)


def test_a_missing_entry_is_named(context: Context) -> None:
    for number in (1, 3):
        context.store.put(history_key(number), entry(number, "1").model_dump_json().encode())
    with pytest.raises(RetrainError, match=r"no entry retraining/history/000002\.json"):
        history(context)


def test_the_history_is_listed_in_order(context: Context) -> None:
    for number in (2, 11, *range(3, 11), 1):
        context.store.put(history_key(number), entry(number, str(number)).model_dump_json().encode())
    assert [row["number"] for row in describe_history(context, None)] == list(range(1, 12))


def test_the_champion_of_a_moment() -> None:
    entries = [entry(1, "1"), entry(2, "2"), entry(3, "1", "rollback")]
    minute = timedelta(minutes=1)
    for hour, version in ((1, "1"), (2, "2"), (3, "1")):
        assert champion_at(entries, NOON + timedelta(hours=hour)).version_after == version
        assert champion_at(entries, NOON + timedelta(hours=hour + 1) - minute).version_after == version
    with pytest.raises(UsageError, match="the first became champion at 2026-01-02 13:00:00 UTC"):
        champion_at(entries, NOON)
    with pytest.raises(UsageError, match="there never was"):
        champion_at([], NOON)


@pytest.mark.parametrize(
    ("entries", "line"),
    [
        ([], []),
        ([entry(1, "4", before="3")], ["3", "4"]),
        ([entry(1, "1"), entry(2, "2"), entry(3, "3")], ["1", "2", "3"]),
        ([entry(1, "1"), entry(2, "2"), entry(3, "3"), entry(4, "2", "rollback")], ["1", "2"]),
        ([entry(1, "1"), entry(2, "2"), entry(3, "3"), entry(4, "1", "rollback"), entry(5, "5")], ["1", "5"]),
        # Forward again to one that was rolled back, by its number.
        ([entry(1, "1"), entry(2, "2"), entry(3, "1", "rollback"), entry(4, "2", "rollback")], ["1", "2"]),
    ],
)
def test_the_line_of_champions_leaves_out_who_was_rolled_back(entries: list[Promotion], line: list[str]) -> None:
    assert champion_lineage(entries) == line


def test_a_reason_is_needed_and_fits() -> None:
    assert checked_why("  seen on slide 12 ") == "seen on slide 12"
    for why in ("", "  \n", "x" * 1_001):
        with pytest.raises(UsageError, match="reason"):
            checked_why(why)
