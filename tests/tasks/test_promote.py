"""Promote: the alias moves once, for a reason that is on record, whatever is killed in between."""

from __future__ import annotations

from typing import Any

import pytest

from infra.registry.registry import Registry
from infra.store.keys import MODEL_NAME
from tasks.champion.history import history
from tasks.commands.describe_champion import describe_champion
from tasks.commands.rollback import rollback
from tasks.context import Context
from tasks.promote import promote
from tests.builders import NOON, RED, channel_model, made_up_candidate, made_up_decision
from tests.tasks.conftest import Crown
from validation.errors import ChampionChanged, ModelFileInvalid, UsageError
from validation.records import Candidate, ChampionRef, Verdict

pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("tried_here", "evidence_believed")]


@pytest.fixture
def challenger(context: Context) -> Candidate:
    return stored(context, channel_model(), "c" * 24)


@pytest.fixture
def other(context: Context) -> Candidate:
    return stored(context, channel_model(RED), "o" * 24, name="keras")


def stored(context: Context, model: bytes, id_: str, **values: Any) -> Candidate:
    candidate = made_up_candidate(model, id_=id_, **values)
    context.store.put(candidate.model_key, model)
    return candidate


def versions(registry: Registry) -> list[str]:
    registered = registry._client.search_model_versions(f"name='{MODEL_NAME}'")
    return sorted(str(version.version) for version in registered)


def test_the_first_champion(context: Context, registry: Registry, challenger: Candidate) -> None:
    champion = promote(context, made_up_decision(), challenger, registry)
    assert champion is not None
    assert champion == registry.champion()
    assert champion.candidate == challenger.id
    assert registry.model_bytes(champion) == context.store.get(challenger.model_key)
    (entry,) = history(context)
    assert (entry.number, entry.version_before, entry.version_after) == (1, None, champion.version)
    assert (entry.decision, entry.why) == (made_up_decision().id, "It was promoted")


def test_the_next_champion_is_the_next_entry(
    context: Context, registry: Registry, challenger: Candidate, other: Candidate
) -> None:
    first = promote(context, made_up_decision("d1"), other, registry)
    second = promote(context, made_up_decision("d2", before=first), challenger, registry)
    assert second is not None
    assert registry.champion() == second
    assert [(e.number, e.decision, e.version_before, e.version_after) for e in history(context)] == [
        (1, "d1", None, "1"),
        (2, "d2", "1", "2"),
    ]


def test_promoting_twice_changes_nothing(context: Context, registry: Registry, challenger: Candidate) -> None:
    first = promote(context, made_up_decision(), challenger, registry)
    before = history(context)
    assert promote(context, made_up_decision(), challenger, registry) == first
    assert history(context) == before
    assert versions(registry) == ["1"]


@pytest.mark.parametrize("verdict", [verdict for verdict in Verdict if verdict is not Verdict.PROMOTED])
def test_any_other_verdict_leaves_the_champion(
    verdict: Verdict, context: Context, registry: Registry, challenger: Candidate
) -> None:
    assert promote(context, made_up_decision(verdict=verdict), challenger, registry) is None
    assert registry.champion() is None
    assert history(context) == []


class Killed(BaseException):
    """As a SIGKILL: nothing below catches it."""


def killed(*_: object, **__: object) -> None:
    raise Killed


@pytest.mark.parametrize(
    "moment",
    [
        "infra.registry.registry.Registry.register",
        "tasks.promote.reproduce",
        "infra.registry.registry.Registry.put_if_absent",
        "infra.store.memory.MemoryStore.put",
        "infra.registry.registry.Registry.set_champion",
    ],
)
def test_a_promotion_that_is_killed_finishes_when_it_is_run_again(
    moment: str, context: Context, registry: Registry, challenger: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(moment, killed)
        with pytest.raises(Killed):
            promote(context, made_up_decision(), challenger, registry)
    assert registry.champion() is None
    champion = promote(context, made_up_decision(), challenger, registry)
    assert champion is not None
    assert champion == registry.champion()
    assert versions(registry) == ["1"]
    assert [entry.version_after for entry in history(context)] == ["1"]


def test_a_champion_that_was_not_compared_is_never_replaced(
    context: Context, registry: Registry, challenger: Candidate, other: Candidate, crown: Crown
) -> None:
    crowned = crown(other)
    with pytest.raises(ChampionChanged, match="is version 1, the challenger was compared with version none") as caught:
        promote(context, made_up_decision(), challenger, registry)
    assert "run the night again" in caught.value.hint
    assert registry.champion() == crowned
    assert history(context) == []
    assert versions(registry) == ["1"]


def test_a_champion_that_moved_meanwhile_is_never_replaced(
    context: Context, registry: Registry, challenger: Candidate, other: Candidate, crown: Crown
) -> None:
    compared = crown(other)
    crowned = crown(stored(context, channel_model(centre=90), "n" * 24))
    with pytest.raises(ChampionChanged, match="is version 2, the challenger was compared with version 1"):
        promote(context, made_up_decision(before=compared), challenger, registry)
    assert registry.champion() == crowned


def test_a_champion_that_is_gone_is_a_change_too(context: Context, registry: Registry, challenger: Candidate) -> None:
    before = ChampionRef(version="7", candidate="x", model="keras", model_sha256="0", threshold=0.5, since=NOON)
    with pytest.raises(ChampionChanged, match="is version none"):
        promote(context, made_up_decision(before=before), challenger, registry)


def test_a_decision_is_carried_out_once_and_not_again_after_a_rollback(
    context: Context, registry: Registry, challenger: Candidate, other: Candidate
) -> None:
    first = promote(context, made_up_decision("d1"), other, registry)
    decision = made_up_decision("d2", before=first)
    promote(context, decision, challenger, registry)
    assert rollback(context, registry, None, why="it was wrong", who="a person") == first
    # The night that decided it was killed before it was over, and is run again.
    assert promote(context, decision, challenger, registry) == first
    assert registry.champion() == first


def test_a_tampered_candidate_is_not_even_registered(
    context: Context, registry: Registry, challenger: Candidate
) -> None:
    context.store.put(challenger.model_key, channel_model(centre=99))
    with pytest.raises(ModelFileInvalid, match="tampered with"):
        promote(context, made_up_decision(), challenger, registry)
    assert versions(registry) == []
    assert (registry.champion(), history(context)) == (None, [])


def test_the_champions_facts(context: Context, registry: Registry, challenger: Candidate) -> None:
    with pytest.raises(UsageError, match="no champion"):
        describe_champion(context, registry)
    decision = made_up_decision()
    context.records.save(decision, decision.id)
    promote(context, decision, challenger, registry)
    facts = describe_champion(context, registry)
    assert (facts["version"], facts["model"], facts["decision"]) == ("1", "fastai", decision.id)
    assert facts["why"] == "It was promoted"
    assert facts["threshold"] == challenger.threshold
    assert facts["synthetic"] is True
    assert facts["uri"] == "models:/malaria-cell@champion"
    assert facts["metrics"] == {}
