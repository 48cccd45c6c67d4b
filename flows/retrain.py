"""The nightly flow: pull, validate, split, pack, train, evaluate, decide, promote, report.

It only says which stage follows which, and where the trainings run; what a stage does stands in its module of tasks/.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Annotated, Any, Literal

from prefect import flow
from pydantic import Field

from flows.events import emit_night_events
from flows.night import StageTimer, build_night_record, finished_night, night_id, start_night
from flows.opening import initiator
from flows.train import trainings_elsewhere
from infra.privacy import redact_exceptions
from infra.registry.registry import Registry
from infra.runtime import prepare_environment
from infra.settings.settings import load_settings
from tasks.champion.history import reconcile_champion
from tasks.context import Context
from tasks.decide import Evidence, decide_task
from tasks.evaluate import Contest, evaluate_task, prepare_contest_task
from tasks.pack import pack_task
from tasks.promote import promote_task
from tasks.pruning.prune import tidy
from tasks.pull import pull_task
from tasks.report import report_task
from tasks.reporting.index import refresh_index
from tasks.reporting.publish import note_in_registry, publish_task
from tasks.split import split_task
from tasks.train import train_task
from tasks.training.specs import train_spec
from tasks.training.warm_start import earlier_candidates
from tasks.validate import validate_task
from validation.errors import ChampionUnusable, LedgerSpent, TrainingFailed
from validation.records import Candidate, Night, Pack, Snapshot, Split, Start, ValidationResult

log = logging.getLogger(__name__)

# Said out as a type, so that Prefect refuses another name before there is a run.
Models = Annotated[list[Literal["fastai", "keras"]], Field(min_length=1)]


@flow(name="retrain", validate_parameters=True, log_prints=False)
def retrain(models: Models | None = None) -> dict[str, Any]:
    """Run one night with the settings of this machine and return its record (validation.records.Night) as JSON.

    Args:
        models: train only these CNNs tonight; default: those of the settings.
    """
    settings = load_settings()
    if models:
        training = settings.training.model_copy(update={"models": tuple(models)})
        settings = settings.model_copy(update={"training": training})
    prepare_environment(settings)
    context = Context.open(settings)
    with redact_exceptions(), context.workspace.night_lock():
        night = run_night(context)
        # Under the lock, so that no other night begins meanwhile; this one's record is stored already.
        tidy(context)
    emit_night_events(night)
    return night.model_dump(mode="json")


def run_night(context: Context) -> Night:
    """Run one night, from the store to the verdict, skipping what an earlier run of it has finished.

    Raises:
        Unreachable: the store or the registry does not answer.
        DataInvalid: there is nothing to look at.
        TrainingFailed: no CNN could be trained.
    """
    clock = StageTimer()
    registry = Registry(context.settings)
    # Whatever was killed half-way through changing the champion is finished before anybody asks who it is.
    reconcile_champion(context, registry)
    snapshot = clock.time("pull", pull_task, context)
    id_ = night_id(context, snapshot)
    if (night := finished_night(context, id_, registry, clock)) is not None:
        publish_task(context, night)
        return night
    start = start_night(context, id_, registry)
    validation = clock.time("validate", validate_task, context, snapshot, start.champion)
    if validation.valid:
        evidence = _compete(context, snapshot, validation, start, registry, clock)
    else:
        evidence = Evidence(snapshot, validation)
    decision = clock.time("decide", decide_task, context, evidence)
    champion = start.champion
    if evidence.contest is not None:
        challenger = evidence.contest.challenger
        champion = clock.time("promote", promote_task, context, decision, challenger, registry, initiator())
    night = build_night_record(context, start, decision, champion, clock)
    # The night is over when its record is there, so the report, which can be built again, comes before it.
    clock.time("report", report_task, context, night)
    night = night.model_copy(update={"seconds": dict(clock.seconds)})
    context.records.save(night, id_)
    context.records.point("night", night)
    _publish(context, night, registry)
    return night


def _publish(context: Context, night: Night, registry: Registry) -> None:
    """Show the night in the index, on MLflow's pages and on Prefect's. It is over: nothing here may fail it."""
    refresh_index(context)
    note_in_registry(context, night, registry)
    publish_task(context, night)


def _compete(
    context: Context,
    snapshot: Snapshot,
    validation: ValidationResult,
    start: Start,
    registry: Registry,
    clock: StageTimer,
) -> Evidence:
    """Train both CNNs, choose the challenger on validation, and let it look at the holdout if it is worth it."""
    split = clock.time("split", split_task, context, validation)
    pack = clock.time("pack", pack_task, context, split)
    candidates, failed = _train_all(context, start, split, pack, clock)
    contest = clock.time("choose", prepare_contest_task, context, candidates, start, registry, split, pack)
    evidence = Evidence(snapshot, validation, split, candidates, failed, contest)
    return _look(context, evidence, contest, split, pack, clock)


def _train_all(
    context: Context, start: Start, split: Split, pack: Pack, clock: StageTimer
) -> tuple[list[Candidate], dict[str, str]]:
    """Train every CNN of the settings; one that fails costs itself, not the night."""
    settings = context.settings
    earlier = earlier_candidates(context, start.champion, split) if settings.training.warm else {}
    candidates: list[Candidate] = []
    failed: dict[str, str] = {}
    specs = [train_spec(settings, model, split.id, earlier.get(model)) for model in settings.training.models]
    elsewhere = specs if settings.training.where == "deployment" else []
    with trainings_elsewhere(context, elsewhere) as sent:
        for spec in specs:
            name = f"train {spec.model}"
            try:
                if spec.model in sent:
                    candidates.append(clock.time(name, sent[spec.model].result))
                else:
                    candidates.append(clock.time(name, train_task, context, spec, split, pack))
            except TrainingFailed as error:
                log.error("%s", error)
                failed[spec.model] = error.message
    if not candidates:
        raise TrainingFailed(
            "no CNN could be trained: " + "; ".join(f"{model}: {why}" for model, why in failed.items()),
            "the champion is untouched; correct the cause and run the night again",
        )
    return candidates, failed


def _look(
    context: Context, evidence: Evidence, contest: Contest, split: Split, pack: Pack, clock: StageTimer
) -> Evidence:
    """Let the challenger look at the holdout if it is worth it; return the evidence with what that brought."""
    if not contest.worth_a_look:
        return evidence
    try:
        return replace(evidence, evaluation=clock.time("evaluate", evaluate_task, context, contest, split, pack))
    except LedgerSpent as error:
        log.error("%s", error)
        return replace(evidence, refused_look=error.message)
    except ChampionUnusable as error:
        log.error("the champion cannot be used: %s", error)
        broken = replace(contest, champion_problem=error.message)
        return replace(evidence, contest=broken, contest_broke_off=True)
