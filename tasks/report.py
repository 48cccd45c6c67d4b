"""Report: one HTML page a decision, built from the records alone, so that an old one can be built again."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from infra.local.files import write_atomic
from infra.store.keys import CANDIDATE_ASSET, OURS, REPORT_ASSET, record_key, report_key
from tasks.context import Context
from tasks.models import model_names
from tasks.nights import find_night
from tasks.pruning.retire import refuse_retired
from tasks.reporting.exhibits import exhibits
from tasks.reporting.flow import site_pattern
from tasks.reporting.index import refresh_index
from tasks.reporting.inputs import ReportInputs
from tasks.reporting.page import render_report
from tasks.stage import stage
from validation.errors import ObjectMissing, RetrainError, UsageError
from validation.records import (
    ApprovalAnswer,
    ApprovalRequest,
    Candidate,
    Decision,
    Evaluation,
    Night,
    Snapshot,
    Split,
    ValidationResult,
)

log = logging.getLogger(__name__)
# The name of the page of nights that find nothing new; decisions are named by digests.
NOTHING_NEW = "nothing-new"


def report_path(context: Context, decision: str) -> Path:
    """Return the path of the report on a decision on this machine."""
    return context.workspace.reports / f"{decision}.html"


def report(context: Context, night: Night) -> Path:
    """Build the report on a night's decision, store it, and return its path on this machine.

    That on a decision of 0.1 is not built again, since the records that it rests on have changed: its page is kept.

    Raises:
        UsageError: for a night without a decision.
        ObjectMissing: when the report was retired, or the kept page is gone.
    """
    if night.decision is None:
        raise UsageError("a night without a decision has no report", "`retrain report latest` shows the newest")
    refuse_retired(context, night.decision)
    if _is_of_before_members(context, night.decision):
        return _kept_page(context, night.decision)
    inputs = _with_tables(context, _records_of(context, night, context.records.load(Decision, night.decision)))
    path = _store(context, night.decision, inputs)
    if inputs.validation.data_docs is not None:
        _copy_data_docs(context, inputs.validation.data_docs)
    return path


def show_answer(context: Context, decision: str) -> None:
    """Build the report on a decision that a person answered, and the index, again; a failure undoes nothing."""
    try:
        report(context, find_night(context, decision))
    except RetrainError as error:
        log.warning("the report on decision %s does not show its answer: %s", decision, error)
    refresh_index(context)


def report_again(context: Context, night: Night) -> Path:
    """Build the page of a night that found nothing new, under one name for all of them, and return its path.

    Such a night comes to no decision: its page shows the data, no figures, and a link to the report on the decision
    in force.
    """
    decision = context.records.load(Decision, night.decision or "")
    unmeasured: dict[str, Any] = {
        "verdict": night.verdict,
        "sentence": night.sentence,
        "candidates": (),
        "challenger": None,
        "champion_before": None,
        "tuning": {},
        "not_looked": "",
        "evaluation": None,
        "gates": (),
        "failed_trainings": {},
    }
    night = night.model_copy(update={"challenger": None, "challenger_model": None, "metrics": {}})
    inputs = _records_of(context, night, decision.model_copy(update=unmeasured))
    return _store(
        context, NOTHING_NEW, replace(inputs, snapshot=inputs.snapshot.model_copy(update={"new": 0, "gone": 0}))
    )


def _is_of_before_members(context: Context, decision: str) -> bool:
    """Whether a decision is one of 0.1, which names the generation of its holdout."""
    try:
        return "generation" in json.loads(context.store.get(record_key(Decision.kind, decision)))
    except ValueError:
        return False  # damaged, which is named when it is loaded


def _kept_page(context: Context, decision: str) -> Path:
    path, key = report_path(context, decision), report_key(decision)
    earlier = f"the report on decision {decision} was written by an earlier version"
    if not path.exists():
        try:
            write_atomic(path, context.store.get(key))
        except ObjectMissing as error:
            raise ObjectMissing(
                f"{earlier}, which alone could build it, and {key} is gone from {context.store.uri}",
                "the decision is kept: `retrain history`",
            ) from error
    log.warning("%s: its page is kept as it was, %s and %s in the store", earlier, path, key)
    return path


def _store(context: Context, name: str, inputs: ReportInputs) -> Path:
    page = render_report(inputs).encode()
    context.store.put(report_key(name), page)
    path = report_path(context, name)
    write_atomic(path, page)
    return path


def _copy_data_docs(context: Context, key: str) -> None:
    """Copy the Data Docs from the store to where the report on this machine links to."""
    try:
        write_atomic(context.workspace.home / key.removeprefix(OURS), context.store.get(key))
    except ObjectMissing:
        log.warning("the Data Docs %s are gone from the store", key)


def _records_of(context: Context, night: Night, decision: Decision) -> ReportInputs:
    """Return the records of a night, without their tables."""
    records = context.records
    before = decision.champion_before
    # A page cannot show how long it took to be built, or building it again would give another one.
    known = {
        name: {k: v for k, v in getattr(night, name).items() if k != "report"} for name in ("seconds", "memory_mb")
    }
    return ReportInputs(
        night=night.model_copy(update=known),
        decision=decision,
        snapshot=records.load(Snapshot, decision.snapshot),
        validation=records.load(ValidationResult, decision.validation),
        split=records.find(Split, decision.split) if decision.split else None,
        candidates=tuple(records.load(Candidate, id_) for id_ in decision.candidates),
        evaluation=records.load(Evaluation, decision.evaluation) if decision.evaluation else None,
        predictions=None,
        champion_candidate=records.find(Candidate, before.candidate) if before else None,
        request=records.find(ApprovalRequest, decision.id),
        answer=records.find(ApprovalAnswer, decision.id),
    )


def _with_tables(context: Context, inputs: ReportInputs) -> ReportInputs:
    """Return the inputs with predictions, measurements of the judged cells, and exhibits."""
    records, evaluation = context.records, inputs.evaluation
    predictions = facts = None
    if evaluation is not None or site_pattern(inputs.night.settings):
        table = records.load_table(inputs.validation.facts)
        inputs = replace(inputs, accepted=table[["key", "patient"]])
    if evaluation is not None:
        predictions = records.load_table(evaluation.predictions)
        facts = table.loc[table["key"].isin(set(predictions["key"])), ["key", "brightness"]]
    shown = exhibits(context, inputs.decision, evaluation, predictions, inputs.candidates)
    cells = records.load_table(shown.cells)
    return replace(inputs, predictions=predictions, facts=facts, exhibits=shown, cells=cells)


report_task = stage(report, makes=REPORT_ASSET, of=[CANDIDATE_ASSET + model for model in model_names()])
