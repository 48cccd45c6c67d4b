"""The nightly flow: pull, validate, split, pack, train, combine, evaluate, decide, promote, report.

It says only which stage follows which, and where the trainings run; what a stage does is in its module of tasks/.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from prefect import flow
from prefect.runtime import flow_run
from pydantic import Field

from flows.events import emit_night_events
from flows.night import StageTimer, build_night_record, failed_night, finished_night, keep_night, night_id, start_night
from flows.opening import initiator, opened
from flows.train import trainings
from infra.registry.registry import Registry
from infra.registry.trainings import Tried
from infra.settings.settings import load_settings
from tasks.champion.history import reconcile_champion
from tasks.champion.in_force import champion_problem
from tasks.choose import prepare_contest_task
from tasks.combine import combine_task, find_candidate
from tasks.context import Context, Progress
from tasks.decide import Evidence, decide_task
from tasks.evaluate import NoLook, evaluate_task
from tasks.field import field_task
from tasks.pack import pack_task
from tasks.promote import crown_task, promote_task
from tasks.pruning.prune import tidy
from tasks.pull import pull_task
from tasks.report import report_task
from tasks.reporting.index import refresh_index
from tasks.reporting.publish import night_links, note_in_registry, note_trainings, publish_task
from tasks.split import split_task
from tasks.train import train_task
from tasks.training.specs import member_specs
from tasks.validate import validate_task
from validation.errors import ChampionUnusable, TrainingFailed
from validation.patients import FOLDS
from validation.records import Candidate, Member, Night, Pack, Split, Start, TrainSpec, ValidationResult, Verdict

log = logging.getLogger(__name__)

# A type, so that Prefect's server refuses any other name before it creates a run.
Models = Annotated[list[Literal["fastai", "keras"]], Field(min_length=1)]
Members = Annotated[int, Field(ge=1, le=FOLDS)]


def _run_name() -> str:
    kind = "dry run" if flow_run.parameters.get("dry_run") else "night"
    return f"{kind} {datetime.now(UTC):%Y-%m-%d}"


@flow(name="retrain", flow_run_name=_run_name, validate_parameters=True, log_prints=False)
def retrain(models: Models | None = None, members: Members | None = None, dry_run: bool = False) -> dict[str, Any]:
    """Run one night with the settings of this machine and return its record (validation.records.Night) as JSON.

    Args:
        models: Train only these CNNs tonight; default: those of the settings.
        members: Train only so many networks of each CNN tonight (1 to 5); the patients of the others' folds judge
            nothing. Default: the settings'.
        dry_run: Pull and judge the data only, and say whether a night would train: nothing is trained, judged,
            promoted or reported, and the record that is returned is the validation's.
    """
    settings = load_settings()
    asked = {"models": tuple(models) if models else None, "members": members}
    training = settings.training.model_copy(update={name: value for name, value in asked.items() if value})
    settings = settings.model_copy(update={"training": training})
    with opened(settings) as context, context.workspace.night_lock():
        if dry_run:
            return look_at_data(context).model_dump(mode="json")
        night = run_night(context)
        # Within the lock, so that no other night begins meanwhile; this one's record is stored already.
        tidy(context)
    emit_night_events(night, night_links(context, night))
    return night.model_dump(mode="json")


def look_at_data(context: Context) -> ValidationResult:
    """Pull and validate as tonight's night would; log whether it would train."""
    registry = Registry(context.settings)
    reconcile_champion(context, registry)
    snapshot = pull_task(context)
    validation = validate_task(context, snapshot, registry.champion())
    failed = [check.name for check in validation.checks if not check.passed and check.severity == "invalid"]
    would = "it would train" if validation.valid else f"invalid data: {', '.join(failed)}"
    log.info(
        "dry run: %s images accepted (%s new in the store), %s rejected: %s",
        *(f"{validation.accepted:,}", f"{snapshot.new:,}", f"{validation.rejected:,}", would),
    )
    return validation


def run_night(context: Context) -> Night:
    """Run one night, from the store to the verdict, skipping what an earlier run of it has finished.

    Raises:
        Unreachable: the store or the registry does not answer.
        DataInvalid: the store has no cells.
        TrainingFailed: no CNN could be trained.
    """
    clock = StageTimer()
    registry = Registry(context.settings)
    # A change of the champion that was killed half-way is finished before the champion is read.
    reconcile_champion(context, registry)
    problem = champion_problem(context, registry)
    snapshot = clock.time("pull", pull_task, context)
    id_ = night_id(context, snapshot, problem)
    if (night := finished_night(context, id_, registry, clock)) is not None:
        publish_task(context, night)
        return night
    start = start_night(context, id_, registry, snapshot)
    validation = clock.time("validate", validate_task, context, snapshot, start.champion)
    evidence, tried = Evidence(snapshot, validation), Tried()
    if validation.valid:
        evidence = _compete(context, evidence, start, registry, clock, problem, tried)
    decision = clock.time("decide", decide_task, context, evidence)
    champion = start.champion
    if evidence.contest is not None:
        challenger = evidence.contest.challenger
        task = crown_task if decision.verdict is Verdict.PROMOTED else promote_task
        champion = clock.time("promote", task, context, decision, challenger, registry, initiator())
    night = build_night_record(context, start, decision, champion, clock, evidence.field)
    # The night is over once its record is stored, so the report, which can be rebuilt, comes first.
    clock.time("report", report_task, context, night)
    night = keep_night(context, night.model_copy(update={"seconds": dict(clock.seconds)}))
    # The night is over: none of these can fail it.
    refresh_index(context)
    note_in_registry(context, night, registry, tried)
    publish_task(context, night)
    return night


def _compete(
    context: Context,
    evidence: Evidence,
    start: Start,
    registry: Registry,
    clock: StageTimer,
    problem: str,
    tried: Tried,
) -> Evidence:
    """Train both CNNs, choose the challenger on tuning patients, evaluate it if it is worth a look."""
    split = clock.time("split", split_task, context, evidence.validation)
    pack = clock.time("pack", pack_task, context, split)
    field = clock.time("field", field_task, context, registry, start.champion, split, pack)
    try:
        candidates, failed = _train_all(context, split, pack, clock, tried)
    except TrainingFailed as error:
        note_trainings(context, failed_night(context, start, error, clock), registry, tried)
        raise
    contest = clock.time("choose", prepare_contest_task, context, candidates, start, registry, split, pack, problem)
    evidence = Evidence(evidence.snapshot, evidence.validation, split, candidates, failed, contest, field=field)
    if not contest.worth_a_look:
        return evidence
    try:
        judged = clock.time("evaluate", evaluate_task, context, contest, split, pack, registry)
    except ChampionUnusable as error:
        log.error("the champion cannot be used: %s", error)
        broken = replace(contest, champion_problem=error.message)
        return replace(evidence, contest=broken, contest_broke_off=True)
    if isinstance(judged, NoLook):
        return replace(evidence, no_look=judged)
    return replace(evidence, evaluation=judged)


def _train_all(
    context: Context, split: Split, pack: Pack, clock: StageTimer, tried: Tried
) -> tuple[list[Candidate], dict[str, str]]:
    """Train the members of every CNN of the settings; the failure of one CNN does not fail the night."""
    settings = context.settings
    candidates: list[Candidate] = []
    failed: dict[str, str] = {}
    todo: dict[str, list[TrainSpec]] = {}
    for model in settings.training.models:
        specs = member_specs(settings, model, split.id)
        _, stored = find_candidate(context, specs)
        if stored is None:
            todo[model] = specs
        else:
            candidates.append(stored)
    progress = Progress(log, "trained members", sum(map(len, todo.values())))
    with trainings(context, [spec for specs in todo.values() for spec in specs], split, pack) as begun:
        for model, specs in todo.items():
            try:
                candidate = clock.time(
                    f"train {model}", _train_model, context, specs, split, pack, begun, progress, tried
                )
                candidates.append(candidate)
                failed |= {f"{model}, member {fold + 1}": why for fold, why in candidate.missing.items()}
            except TrainingFailed as error:
                log.error("%s", error)
                failed[model] = error.message
    if not candidates:
        raise TrainingFailed(
            "no CNN could be trained: " + "; ".join(f"{model}: {why}" for model, why in failed.items()),
            "the champion is untouched; correct the cause and run the night again",
        )
    return candidates, failed


def _train_model(
    context: Context,
    specs: list[TrainSpec],
    split: Split,
    pack: Pack,
    begun: Mapping[tuple[str, int], Future[Member]],
    progress: Progress,
    tried: Tried,
) -> Candidate:
    """Train the members of one CNN and combine those that came of it."""
    members: list[Member] = []
    missing: dict[int, str] = {}
    for spec in specs:
        try:
            future = begun.get((spec.model, spec.member))
            members.append(future.result() if future else train_task(context, spec, split, pack))
        except TrainingFailed as error:
            log.error("%s", error)
            missing[spec.member] = error.message
            tried.failures.append((spec, error))
        progress.advance()
    tried.members.extend(members)
    return combine_task(context, members, missing, split, pack)
