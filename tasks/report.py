"""Report: one HTML page a decision, built from the records alone, so that an old one can be built again."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from infra.local.files import write_atomic
from infra.store.keys import OURS, report_key
from tasks.context import Context
from tasks.pruning.retire import refuse_retired
from tasks.reporting.exhibits import exhibits
from tasks.reporting.inputs import ReportInputs
from tasks.reporting.page import render_report
from tasks.stage import stage
from validation.errors import ObjectMissing, UsageError
from validation.records import Candidate, Decision, Evaluation, Night, Snapshot, Split, ValidationResult

log = logging.getLogger(__name__)
# The name of the page of nights that find nothing new; decisions are named by digests.
NOTHING_NEW = "nothing-new"


def report_path(context: Context, decision: str) -> Path:
    """Return where the report on a decision lies on this machine."""
    return context.workspace.reports / f"{decision}.html"


def report(context: Context, night: Night) -> Path:
    """Build the report on a night's decision, store it, and return its path on this machine."""
    if night.decision is None:
        raise UsageError("a night without a decision has no report")
    refuse_retired(context, night.decision)
    page = render_report(_inputs(context, night)).encode()
    context.store.put(report_key(night.decision), page)
    path = report_path(context, night.decision)
    write_atomic(path, page)
    _copy_data_docs(context, night.decision)
    return path


def _copy_data_docs(context: Context, decision: str) -> None:
    """Lay the Data Docs beside this machine's reports as they lie in the store: the report's link leads there."""
    records = context.records
    key = records.load(ValidationResult, records.load(Decision, decision).validation).data_docs
    if key is None:
        return
    path = context.workspace.home / key.removeprefix(OURS)
    try:
        write_atomic(path, context.store.get(key))
    except ObjectMissing:
        log.warning("the Data Docs %s are gone from the store", key)


def report_again(context: Context, night: Night) -> Path:
    """Build the page of a night that found nothing new, under one name for all of them, and return its path.

    Such a night comes to no decision of its own: its page says so and leads to the report on the one that stands.
    """
    page = render_report(_unmeasured(_records_of(context, night), night)).encode()
    context.store.put(report_key(NOTHING_NEW), page)
    path = report_path(context, NOTHING_NEW)
    write_atomic(path, page)
    return path


def _unmeasured(inputs: ReportInputs, night: Night) -> ReportInputs:
    """What a night that found nothing new has to show: the data as it lies there, and nothing measured."""
    nothing: dict[str, Any] = {
        "candidates": (),
        "challenger": None,
        "evaluation": None,
        "gates": (),
        "failed_trainings": {},
    }
    unsaid = {"champion_before": None, "champion_on_validation": None, "verdict": night.verdict}
    decision = inputs.decision.model_copy(update={**nothing, **unsaid, "sentence": night.sentence})
    snapshot = inputs.snapshot.model_copy(update={"new": 0, "gone": 0})
    night = night.model_copy(update={"challenger": None, "challenger_model": None, "metrics": {}})
    return replace(
        inputs,
        night=night,
        decision=decision,
        snapshot=snapshot,
        candidates=(),
        evaluation=None,
        champion_candidate=None,
    )


def _inputs(context: Context, night: Night) -> ReportInputs:
    """All that the report on a night's decision shows."""
    inputs = _records_of(context, night)
    decision, evaluation = inputs.decision, inputs.evaluation
    predictions = context.records.load_table(evaluation.predictions) if evaluation else None
    shown = exhibits(context, decision, evaluation, predictions, inputs.candidates)
    return replace(
        inputs,
        predictions=predictions,
        facts=_facts(context, inputs.validation, predictions),
        exhibits=shown,
        cells=context.records.load_table(shown.cells),
    )


def _records_of(context: Context, night: Night) -> ReportInputs:
    """The records of a night, without their tables."""
    records = context.records
    decision = records.load(Decision, night.decision or "")
    before = decision.champion_before
    # A page cannot show how long it took to be built, or building it again would give another one.
    known = {
        name: {k: v for k, v in getattr(night, name).items() if k != "report"} for name in ("seconds", "memory_mb")
    }
    validation = records.load(ValidationResult, decision.validation)
    return ReportInputs(
        night=night.model_copy(update=known),
        decision=decision,
        snapshot=records.load(Snapshot, decision.snapshot),
        validation=validation,
        data_docs=validation.data_docs,
        split=records.load(Split, decision.split) if decision.split else None,
        candidates=tuple(records.load(Candidate, id_) for id_ in decision.candidates),
        evaluation=records.load(Evaluation, decision.evaluation) if decision.evaluation else None,
        predictions=None,
        champion_candidate=records.find(Candidate, before.candidate) if before else None,
        settings=night.settings,
    )


def _facts(context: Context, validation: ValidationResult, predictions: pd.DataFrame | None) -> pd.DataFrame | None:
    """What was measured of the holdout cells; nothing when the holdout was not looked at."""
    if predictions is None:
        return None
    facts = context.records.load_table(validation.facts)[["key", "brightness"]]
    return facts[facts["key"].isin(set(predictions["key"]))]


report_task = stage(report)
