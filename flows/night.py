"""A night's bookkeeping: its id, its start, whether it is over already, and how long each stage took."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import ParamSpec, TypeVar

from infra.provenance import forget_peak_memory, hardware, peak_memory_mb, revision, versions
from infra.registry.registry import Registry
from infra.store.keys import SYNTHETIC_MARK
from tasks.champion.history import was_promoted
from tasks.context import Context
from tasks.nights import nights, undamaged
from tasks.pruning.retire import find_retired
from tasks.report import report, report_again, report_path
from tasks.reporting.words.recorded import nothing_new
from tasks.training.specs import member_specs
from validation.digest import digest
from validation.errors import TrainingFailed
from validation.records import (
    Candidate,
    ChampionRef,
    Decision,
    Evaluation,
    FieldReport,
    Night,
    Snapshot,
    Start,
    ValidationResult,
    Verdict,
)

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


class StageTimer:
    """Measures and logs the seconds and the memory of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.memory_mb: dict[str, float] = {}

    def time(self, name: str, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run one stage and record its seconds and this process's peak memory."""
        started = time.monotonic()
        forget_peak_memory()
        try:
            return function(*args, **kwargs)
        finally:
            self.seconds[name] = round(time.monotonic() - started, 2)
            if (peak := peak_memory_mb()) is not None:
                self.memory_mb[name] = peak
            log.info("%s: %.1f s", name, self.seconds[name])


def night_id(context: Context, snapshot: Snapshot, problem: str = "") -> str:
    """Return the id of the night over a snapshot: the same data and settings are the same night.

    Not so with a ``problem`` of the champion: the night that promoted it must keep its record.

    Raises:
        SettingsError: for an invalid recipe.
    """
    settings = context.settings
    specs = [
        spec.model_dump(mode="json") for model in settings.training.models for spec in member_specs(settings, model, "")
    ]
    return digest(snapshot.id, settings.fingerprint(), specs, *([problem] if problem else []))


def start_night(context: Context, id_: str, registry: Registry, snapshot: Snapshot) -> Start:
    """Record the current champion; a killed night resumes with what it recorded first."""
    start = context.records.find(Start, id_)
    if start is None:
        champion = _champion_before(context, registry, snapshot)
        start = context.records.save_once(Start(id=id_, champion=champion, started_at=datetime.now(UTC)), id_)
    return start


def _champion_before(context: Context, registry: Registry, snapshot: Snapshot) -> ChampionRef | None:
    """Return the champion, or the one before it where this night made it and has lost the record of its start."""
    champion = registry.champion()
    if champion is None:
        return None
    made_by = registry.decision_of(champion.version) or ""
    decision = undamaged(partial(context.records.find, Decision, made_by))
    is_own = decision is not None and decision.snapshot == snapshot.id and was_promoted(context, made_by)
    if decision is None or not is_own or any(night.decision == made_by for night in nights(context)):
        return champion
    log.error("the record of this night's start is lost; it began with the champion that decision %s names", made_by)
    return decision.champion_before


def finished_night(context: Context, id_: str, registry: Registry, clock: StageTimer) -> Night | None:
    """Return tonight's record if this night is over already: nothing new, or data that is still invalid.

    A night with an unusable champion is not over: the champion may have been repaired since.
    """
    before = context.records.find(Night, id_)
    if before is None or before.verdict is Verdict.CHAMPION_UNUSABLE:
        return None
    decision = before.decision
    # A retired report is not rebuilt.
    lacking = decision and not report_path(context, decision).exists() and find_retired(context, decision) is None
    if lacking and undamaged(partial(report, context, before)) is None:
        return None  # some of its records are damaged: its stages make them again
    if before.verdict is Verdict.INVALID_DATA:
        return before.model_copy(update={"seconds": clock.seconds})
    champion, now = registry.champion(), datetime.now(UTC)
    version = champion.version if champion else None
    night = before.model_copy(
        update={
            "verdict": Verdict.NOTHING_NEW,
            "sentence": nothing_new(before),
            "champion_before": version,
            "champion_after": version,
            "images": {**before.images, "new": 0, "gone": 0},
            "failed_trainings": {},
            "unused_gpus": {},
            "field": None,
            "seconds": clock.seconds,
            "started_at": now,
            "finished_at": now,
        }
    )
    page = undamaged(partial(report_again, context, night))
    return None if page is None else night.model_copy(update={"report": str(page)})


def failed_night(context: Context, start: Start, error: TrainingFailed, clock: StageTimer) -> Night:
    """Return what MLflow shows of a night that could train no CNN; it is no record: run again, the night goes on."""
    version = start.champion.version if start.champion else None
    return Night(
        id=start.id,
        verdict=Verdict.KEPT,
        sentence=error.message,
        decision=None,
        champion_before=version,
        champion_after=version,
        challenger=None,
        challenger_model=None,
        metrics={},
        images={},
        seconds=clock.seconds,
        report=None,
        synthetic=context.store.exists(SYNTHETIC_MARK),
        started_at=start.started_at,
        finished_at=datetime.now(UTC),
    )


def keep_night(context: Context, night: Night) -> Night:
    """Store a night's record, its last, and return the stored one: of two machines with one night the first counts."""
    stored = context.records.save_once(night, night.id)
    if stored != night:
        if stored.decision != night.decision or stored.verdict is Verdict.CHAMPION_UNUSABLE:
            context.records.save(night, night.id)
            stored = night
        else:
            report(context, stored)  # which has the times and the machine of the night that counts
    context.records.point("night", stored)
    return stored


def build_night_record(
    context: Context,
    start: Start,
    decision: Decision,
    champion_after: ChampionRef | None,
    clock: StageTimer,
    field: FieldReport | None = None,
) -> Night:
    """Return the record of a night that came to a decision."""
    records = context.records
    snapshot = records.load(Snapshot, decision.snapshot)
    validation = records.load(ValidationResult, decision.validation)
    challenger = records.load(Candidate, decision.challenger) if decision.challenger else None
    evaluation = records.load(Evaluation, decision.evaluation) if decision.evaluation else None
    before = decision.champion_before if decision.challenger else start.champion
    trained = [records.load(Candidate, one) for one in decision.candidates]
    return Night(
        id=start.id,
        verdict=decision.verdict,
        sentence=decision.sentence,
        decision=decision.id,
        champion_before=before.version if before else None,
        champion_after=champion_after.version if champion_after else None,
        challenger=challenger.id if challenger else None,
        challenger_model=challenger.model if challenger else None,
        metrics=evaluation.challenger_metrics.intervals() if evaluation else {},
        judged=evaluation.judged if evaluation else "",
        images={
            "found": snapshot.objects,
            "new": snapshot.new,
            "gone": snapshot.gone,
            "accepted": validation.accepted,
            "rejected": validation.rejected,
            "without_patient": validation.without_patient,
        },
        seconds=clock.seconds,
        report=str(report_path(context, decision.id)),
        failed_trainings=decision.failed_trainings,
        unused_gpus={one.model: member.unused_gpu for one in trained for member in one.members if member.unused_gpu},
        field=field,
        synthetic=context.store.exists(SYNTHETIC_MARK),
        settings=context.settings.printable(),
        memory_mb=dict(clock.memory_mb),
        revision=revision(),
        hardware=hardware(),
        versions=versions(),
        started_at=start.started_at,
        finished_at=datetime.now(UTC),
    )
