"""Approval: a challenger that passed every gate waits for a person, who answers once, in time, with a reason."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from infra.registry.registry import Registry
from infra.store.keys import record_key
from tasks.champion.approval import leave_to_person, open_request, request_approval, waits_for_person
from tasks.champion.history import history
from tasks.choose import prepare_contest
from tasks.commands.answer_approval import Reply, answer
from tasks.commands.describe_champion import describe_history
from tasks.commands.rollback import override, rollback
from tasks.context import Context
from tasks.decide import Evidence, decide
from tasks.evaluate import evaluate
from tasks.promote import promote
from tests.builders import (
    NOON,
    Prepared,
    candidate_of,
    channel_member,
    channel_model,
    made_up_candidate,
    made_up_decision,
    with_settings,
)
from tests.tasks.test_promote import Killed, killed
from validation.errors import ApprovalClosed, ChampionChanged, ModelFileInvalid, UsageError
from validation.gate import GateResult
from validation.records import (
    ApprovalAnswer,
    ApprovalRequest,
    Candidate,
    ChampionRef,
    Decision,
    Evaluation,
    Start,
    Verdict,
)

MODEL = channel_model()
ANN = "ann@lab"
REPLIES: tuple[Reply, ...] = ("approve", "reject")

pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("tried_here", "evidence_believed")]


@pytest.fixture
def waiting(context: Context, registry: Registry) -> Decision:
    """A decision that waits; there is no champion yet."""
    return wait(context, registry, 1, None)


def wait(context: Context, registry: Registry, number: int, before: ChampionRef | None) -> Decision:
    candidate = made_up_candidate(MODEL, id_=f"c{number:023d}")
    context.store.put(candidate.model_key, MODEL)
    context.records.save(candidate, candidate.id)
    decision = made_up_decision(f"{number}" * 24, before=before, verdict=Verdict.AWAITING_APPROVAL)
    decision = decision.model_copy(update={"challenger": candidate.id})
    context.records.save(decision, decision.id)
    assert promote(context, decision, candidate, registry) == before
    return decision


def expire(context: Context, decision: Decision) -> None:
    request = context.records.load(ApprovalRequest, decision.id)
    past = request.model_copy(update={"expires_at": datetime.now(UTC) - timedelta(seconds=1)})
    context.records.save(past, decision.id)


def test_the_setting_turns_a_promotion_and_nothing_else_into_a_request(context: Context) -> None:
    person = with_settings(context, promotion={"approval": "person", "approval_hours": 5})
    judgement = GateResult(Verdict.PROMOTED)
    assert leave_to_person(context.settings, judgement) == judgement
    assert leave_to_person(person.settings, judgement) == GateResult(Verdict.AWAITING_APPROVAL)
    for verdict in set(Verdict) - {Verdict.PROMOTED}:
        other = GateResult(verdict)
        assert leave_to_person(person.settings, other) == other
    # What is left to a person is another decision, and another night; how long it may take is neither.
    assert waits_for_person(context.settings) != waits_for_person(person.settings)
    assert person.settings.fingerprint() != context.settings.fingerprint()
    longer = with_settings(context, promotion={"approval": "person", "approval_hours": 9})
    assert longer.settings.fingerprint() == person.settings.fingerprint()


def test_a_night_whose_challenger_passes_every_gate_ends_waiting(
    context: Context, prepared: Prepared, registry: Registry
) -> None:
    challenger = candidate_of(context, prepared, channel_member())
    start = Start(id="night", champion=None, started_at=NOON)
    contest = prepare_contest(context, [challenger], start, registry, prepared.split, prepared.pack)
    evaluation = evaluate(context, contest, prepared.split, prepared.pack, registry)
    assert isinstance(evaluation, Evaluation)
    evidence = Evidence(
        prepared.snapshot, prepared.validation, prepared.split, (challenger,), {}, contest, evaluation
    )  # fmt: skip
    person = with_settings(context, promotion={"approval": "person"})
    alone, asked = decide(context, evidence), decide(person, evidence)
    assert (alone.verdict, asked.verdict) == (Verdict.PROMOTED, Verdict.AWAITING_APPROVAL)
    assert alone.id != asked.id
    assert asked.gates == alone.gates
    assert promote(person, asked, challenger, registry) is None
    assert answer(person, registry, asked.id, "approve", why="seen", who=ANN)[1] == registry.champion()
    assert history(person)[0].checked.endswith("equal to the recorded predictions to the last bit")


def test_asking_again_does_not_extend_the_time(context: Context, registry: Registry, waiting: Decision) -> None:
    request = open_request(context, waiting.id)
    assert request is not None
    assert request.expires_at - request.requested_at == timedelta(hours=72)
    assert request_approval(context, waiting) == request
    assert registry.champion() is None
    assert history(context) == []


def test_an_approved_challenger_is_champion(context: Context, registry: Registry, waiting: Decision) -> None:
    given, champion = answer(context, registry, "latest", "approve", why="looked at 40 cells", who=ANN)
    assert champion == registry.champion()
    (entry,) = history(context)
    assert (entry.action, entry.who, entry.why) == ("approved", ANN, "looked at 40 cells")
    assert (entry.decision, entry.version_after) == (waiting.id, "1")
    assert (given.answer, given.who) == ("approve", ANN)
    assert [row["action"] for row in describe_history(context, registry)] == ["approved"]
    # The night that asked, run again, changes nothing.
    candidate = context.records.load(Candidate, waiting.challenger or "")
    assert promote(context, waiting, candidate, registry) == champion
    assert context.records.load(Decision, waiting.id) == waiting


def test_a_rejected_one_is_not_and_the_history_shows_it(
    context: Context, registry: Registry, waiting: Decision
) -> None:
    assert answer(context, registry, waiting.id[:6], "reject", why="too few rings", who=ANN)[1] is None
    assert (registry.champion(), history(context)) == (None, [])
    (row,) = describe_history(context, registry)
    assert (row["action"], row["who"], row["why"], row["decision"]) == ("rejected", ANN, "too few rings", waiting.id)
    # Another person may still overrule it, by hand and on record.
    override(context, registry, waiting, why="I know better", who="bob@lab")
    assert [row["action"] for row in describe_history(context, registry)] == ["rejected", "override"]


@pytest.mark.parametrize("first", ["approve", "reject"])
def test_a_second_answer_is_refused_with_who_answered_first(
    first: Reply, context: Context, registry: Registry, waiting: Decision
) -> None:
    answer(context, registry, waiting.id, first, why="seen", who=ANN)
    before = describe_history(context, registry)
    word = {"approve": "approved", "reject": "rejected"}[first]
    for second in REPLIES:
        with pytest.raises(ApprovalClosed, match=rf"was {word} by {ANN} at .*: seen"):
            answer(context, registry, waiting.id, second, why="too", who="bob@lab")
    assert describe_history(context, registry) == before


def test_of_two_answers_at_once_one_is_given(
    context: Context, registry: Registry, waiting: Decision, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_if_absent = Registry.put_if_absent

    def slower(self: Registry, name: str, text: str) -> str:
        rival = ApprovalAnswer(decision=waiting.id, answer="reject", who="bob@lab", why="no", at=datetime.now(UTC))
        put_if_absent(self, name, rival.model_dump_json(indent=2))
        return put_if_absent(self, name, text)

    monkeypatch.setattr(Registry, "put_if_absent", slower)
    with pytest.raises(ApprovalClosed, match="rejected by bob@lab"):
        answer(context, registry, waiting.id, "approve", why="yes", who=ANN)
    assert registry.champion() is None
    assert context.records.load(ApprovalAnswer, waiting.id).who == "bob@lab"


def test_an_expired_request_cannot_be_answered(context: Context, registry: Registry, waiting: Decision) -> None:
    expire(context, waiting)
    for reply in REPLIES:
        with pytest.raises(ApprovalClosed, match="expired at") as caught:
            answer(context, registry, waiting.id, reply, why="w", who=ANN)
        assert "retrain promote" in caught.value.hint
        with pytest.raises(UsageError, match="no decision waits"):
            answer(context, registry, "latest", reply, why="w", who=ANN)
    assert (registry.champion(), describe_history(context, registry)) == (None, [])


def test_a_champion_that_changed_meanwhile_is_not_replaced(
    context: Context, registry: Registry, waiting: Decision
) -> None:
    rival = wait(context, registry, 2, None)
    _, champion = answer(context, registry, waiting.id, "approve", why="w", who=ANN)
    for reply in REPLIES:
        with pytest.raises(ChampionChanged, match="is version 1, the challenger was compared with version none"):
            answer(context, registry, rival.id, reply, why="w", who=ANN)
    assert registry.champion() == champion


def test_an_approval_that_was_killed_is_finished_by_approving_again(
    context: Context, registry: Registry, waiting: Decision, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("tasks.commands.answer_approval.append_change", killed)
        with pytest.raises(Killed):
            answer(context, registry, waiting.id, "approve", why="seen", who=ANN)
    assert registry.champion() is None
    assert [row["action"] for row in describe_history(context, registry)] == ["approved, not carried out"]
    answer(context, registry, waiting.id, "approve", why="once more", who="bob@lab")
    (entry,) = history(context)
    # The answer that was given counts, with its reason.
    assert (entry.action, entry.who, entry.why) == ("approved", ANN, "seen")
    assert [row["action"] for row in describe_history(context, registry)] == ["approved"]


def test_what_does_not_wait_cannot_be_answered(context: Context, registry: Registry) -> None:
    kept = made_up_decision(verdict=Verdict.KEPT)
    context.records.save(kept, kept.id)
    with pytest.raises(UsageError, match="does not wait for an approval"):
        answer(context, registry, kept.id, "approve", why="w", who=ANN)
    with pytest.raises(UsageError, match="a reason is needed"):
        answer(context, registry, kept.id, "approve", why=" ", who=ANN)


def test_a_waiting_challenger_is_not_promoted_past_its_approval(
    context: Context, registry: Registry, waiting: Decision
) -> None:
    with pytest.raises(UsageError, match="waits for an approval"):
        override(context, registry, waiting, why="w", who=ANN)
    expire(context, waiting)
    assert override(context, registry, waiting, why="no answer in time", who=ANN) == registry.champion()


def test_a_decision_edited_to_promoted_in_the_bucket_waits_all_the_same(context: Context, registry: Registry) -> None:
    waiting = wait(context, registry, 1, None)
    edited = waiting.model_copy(update={"verdict": Verdict.PROMOTED})
    context.records.save(edited, edited.id)
    context.store.delete(record_key(ApprovalRequest.kind, edited.id))
    careful = with_settings(context, promotion={"approval": "person"})
    candidate = context.records.load(Candidate, waiting.challenger or "")
    assert promote(careful, edited, candidate, registry) is None
    assert open_request(context, edited.id) is not None
    _, champion = answer(careful, registry, edited.id, "approve", why="seen", who=ANN)
    assert champion == registry.champion() is not None


def test_a_tampered_challenger_is_not_approved_and_still_waits(
    context: Context, registry: Registry, waiting: Decision
) -> None:
    candidate = context.records.load(Candidate, waiting.challenger or "")
    context.store.put(candidate.model_key, channel_model(centre=5))
    with pytest.raises(ModelFileInvalid, match="tampered"):
        answer(context, registry, waiting.id, "approve", why="w", who=ANN)
    assert open_request(context, waiting.id) is not None


def test_a_rolled_back_approval_is_not_carried_out_again(
    context: Context, registry: Registry, waiting: Decision
) -> None:
    _, first = answer(context, registry, waiting.id, "approve", why="w", who=ANN)
    second = wait(context, registry, 2, first)
    answer(context, registry, second.id, "approve", why="w", who=ANN)
    rollback(context, registry, None, why="w", who=ANN)
    with pytest.raises(ApprovalClosed):
        answer(context, registry, second.id, "approve", why="again", who=ANN)
    assert registry.champion() == first
