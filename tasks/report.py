"""Report: one HTML page a decision, built from the records alone, so that an old one can be built again."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd

from infra.files import write_atomic
from infra.keys import report_key
from tasks.context import Context
from tasks.report_exhibits import exhibits
from tasks.report_page import ReportInputs, render_report
from tasks.stage import stage
from validation.errors import ObjectMissing, UsageError
from validation.records import Candidate, Decision, Evaluation, Night, Snapshot, Split, ValidationResult

log = logging.getLogger(__name__)


def report_path(context: Context, decision: str) -> Path:
    """Return where the report on a decision lies on this machine."""
    return context.workspace.reports / f"{decision}.html"


def report(context: Context, night: Night) -> Path:
    """Build the report on a night's decision, store it, and return its path on this machine."""
    if night.decision is None:
        raise UsageError("a night without a decision has no report")
    page = render_report(_inputs(context, night)).encode()
    context.store.put(report_key(night.decision), page)
    path = report_path(context, night.decision)
    write_atomic(path, page)
    return path


def find_night(context: Context, decision: str) -> Night:
    """Return the night that came to a decision; ``latest`` and the beginning of an id are understood.

    Raises:
        UsageError: when there is none, or more than one begins like that.
    """
    if decision == "latest":
        night = context.records.latest("night", Night)
        if night is None:
            raise UsageError("no night has come to a decision yet", "start one with `retrain run`")
        return night
    found = [id_ for id_ in context.records.ids(Decision) if id_.startswith(decision)]
    if len(found) != 1:
        raise UsageError(
            f"{len(found) or 'no'} decisions begin with {decision!r} in {context.settings.store}",
            "`retrain report latest` shows the newest",
        )
    try:
        return next(
            night
            for night in (context.records.load(Night, id_) for id_ in context.records.ids(Night))
            if night.decision == found[0]
        )
    except StopIteration:
        raise ObjectMissing(f"the night of decision {found[0]} was not finished", "run `retrain run` again") from None


def _inputs(context: Context, night: Night) -> ReportInputs:
    records = context.records
    decision = records.load(Decision, night.decision or "")
    evaluation = records.load(Evaluation, decision.evaluation) if decision.evaluation else None
    predictions = records.load_table(evaluation.predictions) if evaluation else None
    candidates = tuple(records.load(Candidate, id_) for id_ in decision.candidates)
    validation = records.load(ValidationResult, decision.validation)
    shown = exhibits(context, decision, evaluation, predictions, candidates)
    before = decision.champion_before
    # A page cannot show how long it took to be built, or building it again would give another one.
    spent = {name: {k: v for k, v in getattr(night, name).items() if k != "report"} for name in ("seconds", "memory_mb")}
    return ReportInputs(
        night=night.model_copy(update=spent),
        decision=decision,
        snapshot=records.load(Snapshot, decision.snapshot),
        validation=validation,
        split=records.load(Split, decision.split) if decision.split else None,
        candidates=candidates,
        evaluation=evaluation,
        predictions=predictions,
        champion_candidate=records.find(Candidate, before.candidate) if before else None,
        settings=night.settings,
        facts=_facts(context, validation, predictions),
        exhibits=shown,
        cells=records.load_table(shown.cells),
    )


def _facts(context: Context, validation: ValidationResult, predictions: pd.DataFrame | None) -> pd.DataFrame | None:
    """What was measured of the holdout cells; nothing when the holdout was not looked at."""
    if predictions is None:
        return None
    facts = context.records.load_table(validation.facts)[["key", "brightness"]]
    return facts[facts["key"].isin(set(predictions["key"]))]


report_task = stage(report)
