"""Decide: from the evidence, by the gates, to one verdict with its reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from infra.store.keys import SYNTHETIC_MARK
from tasks.champion.approval import leave_to_person, waits_for_person
from tasks.choose import Contest
from tasks.context import Context
from tasks.evaluate import NoLook
from tasks.judging.verdict import verdict_of
from tasks.nights import last_good_decision
from tasks.reporting.words import recorded
from tasks.reporting.words.conditions import recorded_condition
from tasks.stage import stage
from validation.digest import digest
from validation.gate import GateResult
from validation.records import Candidate, Decision, Evaluation, FieldReport, Snapshot, Split, ValidationResult, Verdict


@dataclass(frozen=True)
class Evidence:
    """All that a decision rests on; a stage that was not reached leaves None."""

    snapshot: Snapshot
    validation: ValidationResult
    split: Split | None = None
    candidates: Sequence[Candidate] = ()
    failed_trainings: Mapping[str, str] = field(default_factory=dict)
    contest: Contest | None = None
    evaluation: Evaluation | None = None
    no_look: NoLook | None = None
    contest_broke_off: bool = False
    field: FieldReport | None = None


def decide(context: Context, evidence: Evidence) -> Decision:
    """Return the decision on the evidence; the same evidence gives the same decision."""
    result, sentence = _judge(context, evidence)
    contest = evidence.contest
    candidates = tuple(candidate.id for candidate in evidence.candidates)
    champion = contest.champion if contest else None
    id_ = digest(
        evidence.snapshot.id,
        evidence.validation.id,
        candidates,
        champion.model_dump(exclude={"since"}) if champion else None,
        evidence.evaluation.id if evidence.evaluation else None,
        evidence.no_look.why if evidence.no_look else "",
        context.settings.gate.model_dump(),
        *waits_for_person(context.settings),
        *([contest.champion_problem] if contest and contest.champion_problem else []),
    )
    if (stored := context.records.find(Decision, id_)) is not None:
        return stored
    decision = Decision(
        id=id_,
        verdict=result.verdict,
        sentence=sentence,
        snapshot=evidence.snapshot.id,
        validation=evidence.validation.id,
        split=evidence.split.id if evidence.split else None,
        candidates=candidates,
        failed_trainings=dict(evidence.failed_trainings),
        challenger=contest.challenger.id if contest else None,
        champion_before=champion,
        tuning=dict(contest.tuning) if contest else {},
        not_looked=evidence.no_look.why if evidence.no_look else "",
        evaluation=evidence.evaluation.id if evidence.evaluation else None,
        gates=tuple(gate.model_copy(update={"sentence": recorded_condition(gate)}) for gate in result.gates),
        further_patients=result.further_patients,
        detectable_difference=result.detectable_difference,
        champion_problem=(contest.champion_problem or None) if contest else None,
        synthetic=context.store.exists(SYNTHETIC_MARK),
        decided_at=datetime.now(UTC),
    )
    return context.records.save_once(decision, id_)


def _judge(context: Context, evidence: Evidence) -> tuple[GateResult, str]:
    """Return the verdict and the sentence that it is stored with."""
    contest, evaluation, rules = evidence.contest, evidence.evaluation, context.settings.gate
    if not evidence.validation.valid:
        return GateResult(Verdict.INVALID_DATA), recorded.invalid_data(evidence.validation)
    if contest is None:
        raise ValueError("valid data without a contest: a night that trained nothing has nothing to decide")
    if contest.champion_problem:
        return GateResult(Verdict.CHAMPION_UNUSABLE), recorded.champion_unusable(
            contest.champion,
            contest.champion_problem,
            last_good_decision(context),
            was_judged=evidence.contest_broke_off,
        )
    if evidence.no_look is not None:
        best_case = evidence.no_look.best_case
        result = replace(best_case, verdict=Verdict.UNDECIDED) if best_case else GateResult(Verdict.UNDECIDED)
        return result, recorded.not_looked(evidence.no_look.why, result)
    if evaluation is None:
        lost = recorded.lost_on_tuning(contest.challenger.tuning, contest.tuning.get("champion"))
        return GateResult(Verdict.KEPT), lost
    result = verdict_of(evaluation, rules)
    result = leave_to_person(context.settings, result)
    hours = context.settings.promotion.approval_hours
    return result, recorded.judged(result, has_champion=contest.champion is not None, approval_hours=hours)


decide_task = stage(decide)
