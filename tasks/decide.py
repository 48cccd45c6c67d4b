"""Decide: the gates over the evidence, to one verdict with its reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from infra.store.keys import SYNTHETIC_MARK
from tasks.champion.approval import leave_to_person, waits_for_person
from tasks.context import Context
from tasks.evaluate import Contest
from tasks.judging.generations import current_generation
from tasks.nights import last_good_decision
from tasks.stage import stage
from validation.digest import digest
from validation.gate import GateResult, judge, judge_first
from validation.records import Candidate, Decision, Evaluation, Snapshot, Split, ValidationResult, Verdict


@dataclass(frozen=True)
class Evidence:
    """All that a decision rests on; what never came about is None."""

    snapshot: Snapshot
    validation: ValidationResult
    split: Split | None = None
    candidates: Sequence[Candidate] = ()
    failed_trainings: Mapping[str, str] = field(default_factory=dict)
    contest: Contest | None = None
    evaluation: Evaluation | None = None
    refused_look: str = ""
    contest_broke_off: bool = False


def decide(context: Context, evidence: Evidence) -> Decision:
    """Return the decision on the evidence; the same evidence gives the same decision."""
    judgement = leave_to_person(context.settings, _judge(context, evidence))
    contest = evidence.contest
    candidates = tuple(candidate.id for candidate in evidence.candidates)
    champion = contest.champion if contest else None
    id_ = digest(
        evidence.snapshot.id,
        evidence.validation.id,
        candidates,
        champion.model_dump(exclude={"since"}) if champion else None,
        evidence.evaluation.id if evidence.evaluation else None,
        evidence.refused_look,
        context.settings.gate.model_dump(),
        *waits_for_person(context.settings),
        *([contest.champion_problem] if contest and contest.champion_problem else []),
    )
    if (stored := context.records.find(Decision, id_)) is not None:
        return stored
    decision = Decision(
        id=id_,
        verdict=judgement.verdict,
        sentence=judgement.sentence,
        snapshot=evidence.snapshot.id,
        validation=evidence.validation.id,
        split=evidence.split.id if evidence.split else None,
        candidates=candidates,
        failed_trainings=dict(evidence.failed_trainings),
        challenger=contest.challenger.id if contest else None,
        champion_before=champion,
        champion_on_validation=contest.champion_on_validation if contest else None,
        evaluation=evidence.evaluation.id if evidence.evaluation else None,
        gates=judgement.gates,
        further_patients=judgement.further_patients,
        detectable_difference=judgement.detectable_difference,
        champion_problem=(contest.champion_problem or None) if contest else None,
        synthetic=context.store.exists(SYNTHETIC_MARK),
        generation=evidence.split.generation if evidence.split else current_generation(context).name,
        decided_at=datetime.now(UTC),
    )
    context.records.save(decision, id_)
    return decision


def _judge(context: Context, evidence: Evidence) -> GateResult:
    if not evidence.validation.valid:
        failed = [check for check in evidence.validation.checks if check.severity == "invalid" and not check.passed]
        reasons = "; ".join(f"{check.name}: {check.observed}, expected {check.expected}" for check in failed)
        return GateResult(Verdict.INVALID_DATA, f"Tonight's data must not be trained on: {reasons}", ())
    contest = evidence.contest
    if contest is None:
        raise ValueError("valid data without a contest: a night that trained nothing has nothing to decide")
    if contest.champion_problem:
        return GateResult(Verdict.CHAMPION_UNUSABLE, _unusable(context, evidence, contest), ())
    if evidence.refused_look:
        return GateResult(Verdict.UNDECIDED, f"Not looked at: {evidence.refused_look}", ())
    if evidence.evaluation is None:
        return GateResult(Verdict.KEPT, _kept_on_validation(contest), ())
    rules = context.settings.gate
    metrics = evidence.evaluation.challenger_metrics
    if contest.champion is None:
        return judge_first(metrics, rules)
    return judge(metrics, evidence.evaluation.differences, rules, evidence.evaluation.spreads)


def _unusable(context: Context, evidence: Evidence, contest: Contest) -> str:
    version = contest.champion.version if contest.champion else "unknown"
    good = last_good_decision(context)
    last = ""
    if good is not None:
        last = f"; the last decision with a champion that could be used is {good.id} ({good.decided_at:%Y-%m-%d})"
    looked = "was looked at, but nothing was compared" if evidence.contest_broke_off else "was not looked at"
    return (
        f"The champion, version {version}, cannot be used: {contest.champion_problem}. It does not count as beaten: "
        f"the holdout {looked}, and nothing is promoted{last}. Repair it or roll back, and run again"
    )


def _kept_on_validation(contest: Contest) -> str:
    new = contest.challenger.validation.balanced_accuracy
    old = contest.champion_on_validation.balanced_accuracy if contest.champion_on_validation else None
    values = f" ({new.value:.4f} against {old.value:.4f} balanced accuracy)" if new and old else ""
    return (
        f"The champion stays: the challenger does not beat it on the validation patients{values}, "
        "so the holdout was not looked at"
    )


decide_task = stage(decide)
