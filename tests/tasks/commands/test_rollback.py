"""Rollback to an earlier champion and override of the gate, each with a reason and a history entry."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra.local.files import Workspace
from infra.registry.registry import Registry
from infra.store.keys import MODEL_NAME, record_key
from tasks.champion.history import history
from tasks.commands.describe_champion import describe_history
from tasks.commands.rollback import override, rollback
from tasks.context import Context
from tasks.nights import find_decision
from tasks.promote import promote
from tests.builders import channel_model, made_up_candidate, made_up_decision
from validation.digest import sha256
from validation.errors import ChampionChanged, ModelFileInvalid, UsageError
from validation.records import Candidate, ChampionRef, Decision, Verdict

ANN = "ann@lab"

pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("tried_here", "evidence_believed")]


def decide(context: Context, number: int, before: ChampionRef | None, verdict: Verdict = Verdict.PROMOTED) -> Decision:
    """Store a decision on a new candidate."""
    model = channel_model(centre=100 + number)
    candidate = made_up_candidate(model, id_=f"c{number:023d}")
    context.store.put(candidate.model_key, model)
    context.records.save(candidate, candidate.id)
    decision = made_up_decision(f"d{number:023d}", before=before, verdict=verdict)
    decision = decision.model_copy(update={"challenger": candidate.id})
    context.records.save(decision, decision.id)
    return decision


def line_of_champions(context: Context, registry: Registry, count: int) -> list[ChampionRef]:
    """Promote ``count`` challengers, one after the other."""
    line: list[ChampionRef] = []
    for number in range(1, count + 1):
        decision = decide(context, number, line[-1] if line else None)
        candidate = made_up_candidate(channel_model(centre=100 + number), id_=decision.challenger or "")
        champion = promote(context, decision, candidate, registry)
        assert champion is not None
        line.append(champion)
    return line


@pytest.fixture
def champions(context: Context, registry: Registry) -> list[ChampionRef]:
    """Three champions, one after the other."""
    return line_of_champions(context, registry, 3)


def test_rolling_back_twice_goes_two_champions_back(
    context: Context, registry: Registry, champions: list[ChampionRef]
) -> None:
    before = history(context)
    assert rollback(context, registry, None, why="it misses rings", who=ANN) == champions[1]
    assert rollback(context, registry, None, why="so does this", who=ANN) == champions[0]
    assert registry.champion() == champions[0]
    with pytest.raises(UsageError, match="no champion before this one"):
        rollback(context, registry, None, why="and this", who=ANN)
    entries = history(context)
    assert entries[:3] == before
    told = [(e.action, e.who, e.version_before, e.version_after, e.why, e.decision[:1]) for e in entries[3:]]
    assert told == [
        ("rollback", ANN, "3", "2", "it misses rings", "d"),
        ("rollback", ANN, "2", "1", "so does this", "d"),
    ]
    # Forward again, by number.
    assert rollback(context, registry, "3", why="it was the stain", who=ANN) == champions[2]
    assert rollback(context, registry, None, why="no, it was not", who=ANN) == champions[0]


def test_a_rollback_to_a_version_that_was_never_champion_is_refused(
    context: Context, registry: Registry, champions: list[ChampionRef]
) -> None:
    extra = registry.register(
        made_up_candidate(channel_model()), channel_model(), made_up_decision("killed before it was champion")
    )
    for version, words in (("3", "champion already"), (extra.version, "never champion"), ("nine", "never champion")):
        with pytest.raises(UsageError, match=words):
            rollback(context, registry, version, why="w", who=ANN)
    assert registry.champion() == champions[-1]
    assert len(history(context)) == 3


def test_a_tampered_version_does_not_become_champion_again(
    context: Context, registry: Registry, champions: list[ChampionRef], home: Path
) -> None:
    old = registry.model_bytes(champions[1])
    (file,) = (path for path in home.rglob("*.onnx") if path.read_bytes() == old)
    file.write_bytes(channel_model(centre=5))
    with pytest.raises(ModelFileInvalid, match=r"version 2 .* registered was"):
        rollback(context, registry, None, why="w", who=ANN)
    assert registry.champion() == champions[-1]
    assert len(history(context)) == 3
    # Nor with a matching checksum: the bucket has the original one too.
    registry._client.set_model_version_tag(MODEL_NAME, "2", "model_sha256", sha256(file.read_bytes()))
    with pytest.raises(ModelFileInvalid, match="not what became champion"):
        rollback(context, registry, None, why="w", who=ANN)
    # Past it, to an intact one.
    assert rollback(context, registry, "1", why="w", who=ANN) == champions[0]


@pytest.mark.parametrize("without_candidate", [False, True])
def test_a_version_whose_threshold_was_edited_in_the_registry_does_not_become_champion_again(
    context: Context, registry: Registry, champions: list[ChampionRef], without_candidate: bool
) -> None:
    if without_candidate:  # its record was pruned: the entry of the history has the threshold too
        context.store.delete(record_key(Candidate.kind, champions[1].candidate))
    registry._client.set_model_version_tag(MODEL_NAME, "2", "threshold", "0.99")
    with pytest.raises(ModelFileInvalid, match=r"the threshold 0\.99, "):
        rollback(context, registry, None, why="w", who=ANN)
    assert registry.champion() == champions[-1]


def test_an_override_of_the_gate_is_recorded(
    context: Context, registry: Registry, champions: list[ChampionRef], caplog: pytest.LogCaptureFixture
) -> None:
    kept = decide(context, 4, champions[-1], Verdict.KEPT)
    champion = override(context, registry, find_decision(context, kept.id[:24]), why="the holdout is too old", who=ANN)
    assert registry.champion() == champion
    assert champion.candidate == kept.challenger
    row = describe_history(context, registry)[-1]
    assert (row["action"], row["who"], row["why"]) == ("override", ANN, "the holdout is too old")
    assert (row["from"], row["to"], row["decision"]) == ("3", "4", kept.id)
    assert "could not be compared" in row["checked"]
    assert context.records.load(Decision, kept.id) == kept
    with pytest.raises(UsageError, match="champion already"):
        override(context, registry, kept, why="again", who=ANN)
    # Also if it was compared with an older champion, with a warning.
    undecided = decide(context, 5, champions[0], Verdict.UNDECIDED)
    override(context, registry, undecided, why="w", who=ANN)
    assert "was compared with version 1, the champion is 4" in caplog.text


def test_a_decision_without_a_challenger_cannot_be_promoted(context: Context, registry: Registry) -> None:
    invalid = made_up_decision(verdict=Verdict.INVALID_DATA).model_copy(update={"challenger": None})
    with pytest.raises(UsageError, match="no challenger"):
        override(context, registry, invalid, why="w", who=ANN)


def test_a_tampered_candidate_cannot_be_promoted_by_hand(context: Context, registry: Registry) -> None:
    decision = decide(context, 1, None, Verdict.KEPT)
    candidate = made_up_candidate(channel_model(), id_=decision.challenger or "")
    context.store.put(candidate.model_key, b"something else")
    with pytest.raises(ModelFileInvalid, match="tampered"):
        override(context, registry, decision, why="w", who=ANN)
    assert registry.champion() is None


def test_a_decision_is_found_by_the_beginning_of_its_id(context: Context) -> None:
    decision = decide(context, 1, None)
    decide(context, 2, None)
    assert find_decision(context, decision.id) == decision
    for text, words in (("d", "2 decisions begin"), ("x", "no decisions begin"), ("", "no decisions")):
        with pytest.raises(UsageError, match=words):
            find_decision(context, text)
    with pytest.raises(UsageError, match="no night"):
        find_decision(context, "latest")


def test_two_people_who_roll_back_at_once_go_one_champion_back(
    context: Context, registry: Registry, champions: list[ChampionRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second waits for the first, and is told who did it and why."""
    lock = Workspace.champion_lock

    def wait_for_bob(workspace: Workspace) -> Any:
        monkeypatch.setattr(Workspace, "champion_lock", lock)
        rollback(context, registry, None, why="rings are missed", who="bob@lab")
        return lock(workspace)

    monkeypatch.setattr(Workspace, "champion_lock", wait_for_bob)
    with pytest.raises(ChampionChanged, match=r"version 2 .* \(rollback\) by bob@lab .*: rings") as caught:
        rollback(context, registry, None, why="it misses rings", who=ANN)
    assert "changed nothing" in caught.value.hint
    assert registry.champion() == champions[1]
    assert len(history(context)) == 4
    with pytest.raises(UsageError, match=r"champion already: .* by bob@lab .*: rings are missed"):
        rollback(context, registry, "2", why="it misses rings", who=ANN)


def test_of_two_machines_that_roll_back_at_once_the_second_is_told_that_it_was_done(
    context: Context, registry: Registry, champions: list[ChampionRef], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No lock is common to two homes: the registry decides."""
    other = replace(context, workspace=Workspace(tmp_path / "another home"))
    put = registry.put_if_absent

    def after_bob(name: str, text: str) -> str:
        monkeypatch.setattr(registry, "put_if_absent", put)
        rollback(other, registry, None, why="rings are missed", who="bob@lab")
        return put(name, text)

    monkeypatch.setattr(registry, "put_if_absent", after_bob)
    with pytest.raises(ChampionChanged, match=r"by bob@lab .*: rings are missed"):
        rollback(context, registry, None, why="it misses rings", who=ANN)
    assert [entry.who for entry in history(context)][3:] == ["bob@lab"]
    assert registry.champion() == champions[1]


def test_a_second_override_is_told_who_made_it_champion(
    context: Context, registry: Registry, champions: list[ChampionRef]
) -> None:
    kept = decide(context, 4, champions[2], Verdict.KEPT)
    override(context, registry, kept, why="seen by hand", who="bob@lab")
    with pytest.raises(UsageError, match=r"champion already: version 4 .* by bob@lab .*: seen by hand"):
        override(context, registry, kept, why="seen by hand too", who=ANN)
