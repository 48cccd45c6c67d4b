"""Evidence: whoever can write to the bucket alone, or to the registry alone, changes no champion unseen."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from infra.registry.registry import Registry
from infra.store.keys import MODEL_NAME
from infra.store.records import table_bytes
from tasks.champion.history import ChampionChange, append_change, history
from tasks.champion.in_force import check_in_force
from tasks.choose import prepare_contest
from tasks.context import Context
from tasks.decide import Evidence, decide
from tasks.evaluate import evaluate
from tasks.judging.evidence import counts_digest, judged_digest
from tasks.promote import promote
from tests.builders import GREEN, NOON, RED, Prepared, candidate_of, channel_member, with_settings
from validation.errors import ChampionUnusable, NotReproduced, RetrainError
from validation.records import Candidate, Decision, Evaluation, Start, Verdict

pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("tried_here")]
# A model that is right about four of five cells may become the first champion.
FLOORS = {"min_auc": 0.0, "min_sensitivity": 0.0, "min_specificity": 0.0}


class Decided(NamedTuple):
    """A challenger with its decision, before anything is carried out."""

    context: Context
    candidate: Candidate
    decision: Decision
    evaluation: Evaluation


def decided(context: Context, prepared: Prepared, registry: Registry, channel: int, name: str = "fastai") -> Decided:
    context = with_settings(context, gate=FLOORS)
    candidate = candidate_of(context, prepared, channel_member(channel), name=name)
    start = Start(id=name, champion=registry.champion(), started_at=NOON)
    contest = prepare_contest(context, [candidate], start, registry, prepared.split, prepared.pack)
    judged = evaluate(context, contest, prepared.split, prepared.pack, registry)
    assert isinstance(judged, Evaluation), judged
    evidence = Evidence(prepared.snapshot, prepared.validation, prepared.split, (candidate,), {}, contest, judged)
    return Decided(context, candidate, decide(context, evidence), judged)


@pytest.fixture
def first(context: Context, prepared: Prepared, registry: Registry) -> Decided:
    """A first champion that reads the worse channel, promoted."""
    made = decided(context, prepared, registry, RED, "keras")
    assert promote(made.context, made.decision, made.candidate, registry) == registry.champion()
    return made


@pytest.fixture
def better(context: Context, prepared: Prepared, registry: Registry, first: Decided) -> Decided:
    """A better challenger that may be promoted."""
    del first
    made = decided(context, prepared, registry, GREEN)
    assert made.decision.verdict is Verdict.PROMOTED
    return made


def test_what_was_not_changed_is_promoted_and_in_force(registry: Registry, better: Decided) -> None:
    champion = promote(better.context, better.decision, better.candidate, registry)
    assert champion == registry.champion() == check_in_force(better.context, registry)
    entry = history(better.context)[-1]
    assert (entry.candidate, entry.threshold) == (better.candidate.id, better.candidate.threshold)
    assert (entry.model_sha256, entry.evaluation) == (better.candidate.model_sha256, better.evaluation.id)


def test_a_kept_decision_that_was_edited_to_promoted_is_refused(registry: Registry, better: Decided) -> None:
    champion = promote(better.context, better.decision, better.candidate, registry)
    kept = better.decision.model_copy(update={"id": "f" * 24, "verdict": Verdict.PROMOTED, "evaluation": None})
    with pytest.raises(NotReproduced, match="rests on no evaluation"):
        promote(better.context, kept.model_copy(update={"champion_before": champion}), better.candidate, registry)
    assert registry.champion() == champion


def test_a_verdict_that_the_evaluation_does_not_bear_out_is_refused(registry: Registry, better: Decided) -> None:
    strict = with_settings(better.context, gate={**FLOORS, "min_sensitivity": 1.0})
    before = registry.champion()
    with pytest.raises(NotReproduced, match="judged again, comes to"):
        promote(strict, better.decision, better.candidate, registry)
    assert registry.champion() == before


def test_a_copied_decision_does_not_carry_out_its_evaluation_again(registry: Registry, better: Decided) -> None:
    context, before = better.context, registry.champion()
    after = promote(context, better.decision, better.candidate, registry)
    assert before is not None
    assert after is not None
    append_change(context, registry, ChampionChange("rollback", "test", "", after, before, "worse in the field", ""))
    copied = edited(better.decision, id="f" * 24)
    assert promote(context, copied, better.candidate, registry) == registry.champion() == before


def edited(record: Any, **values: Any) -> Any:
    return record.model_copy(update=values)


def test_a_threshold_that_was_edited_in_the_bucket_is_refused(registry: Registry, better: Decided) -> None:
    before, other = registry.champion(), edited(better.candidate, threshold=0.9)
    better.context.records.save(other, other.id)
    with pytest.raises(NotReproduced, match=r"threshold 0\.9"):
        promote(better.context, better.decision, other, registry)
    # Edited in the evaluation too: that has another digest than the registry says.
    both = edited(better.evaluation, challenger_threshold=0.9)
    better.context.records.save(both, both.id)
    with pytest.raises(NotReproduced, match="is not the one that was made"):
        promote(better.context, better.decision, other, registry)
    assert registry.champion() == before


def test_an_evaluation_that_was_edited_with_its_predictions_is_refused(registry: Registry, better: Decided) -> None:
    before, records = registry.champion(), better.context.records
    table = records.load_table(better.evaluation.predictions)
    table["label"] = 1 - table["label"]
    better.context.store.put(better.evaluation.predictions, table_bytes(table))
    with pytest.raises(NotReproduced, match=r"judged cells .* were changed"):
        promote(better.context, better.decision, better.candidate, registry)
    counts = {"challenger": counts_digest(table, "challenger", better.candidate.threshold)}
    both = edited(better.evaluation, judged=judged_digest(table), counts={**better.evaluation.counts, **counts})
    records.save(both, both.id)
    with pytest.raises(NotReproduced, match="is not the one that was made"):
        promote(better.context, better.decision, better.candidate, registry)
    assert registry.champion() == before


def test_an_evaluation_of_another_champion_is_refused(registry: Registry, better: Decided) -> None:
    # As after a rollback: the challenger was compared with another version than the decision says.
    other = edited(better.evaluation.champion, version="9")
    better.context.records.save(edited(better.decision, champion_before=other), better.decision.id)
    with pytest.raises(RetrainError, match="the champion has changed"):
        promote(better.context, edited(better.decision, champion_before=other), better.candidate, registry)


@pytest.mark.parametrize(
    ("tag", "value", "what"),
    [("threshold", "0.75", "registered with the threshold 0.75"), ("model_sha256", "0" * 64, "SHA-256 0000")],
)
def test_a_tag_that_was_edited_in_the_registry_is_noticed(
    tag: str, value: str, what: str, registry: Registry, first: Decided
) -> None:
    champion = registry.champion()
    assert champion is not None
    registry._client.set_model_version_tag(MODEL_NAME, champion.version, tag, value)
    with pytest.raises(ChampionUnusable, match=what) as caught:
        check_in_force(first.context, registry)
    for place in ("candidate", "entry 1 of the history", "evaluation"):
        assert place in caught.value.message


@pytest.mark.parametrize("record", ["candidate", "evaluation"])
def test_a_record_that_was_edited_in_the_bucket_is_noticed(record: str, registry: Registry, first: Decided) -> None:
    if record == "candidate":
        first.context.records.save(edited(first.candidate, threshold=0.9), first.candidate.id)
    else:
        first.context.records.save(edited(first.evaluation, challenger_threshold=0.9), first.evaluation.id)
    with pytest.raises(ChampionUnusable, match=f"{record} .*0\\.9|{record} {first.evaluation.id} in the bucket"):
        check_in_force(first.context, registry)
