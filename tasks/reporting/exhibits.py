"""Exhibits: what a report shows besides its night's own records, gathered once and stored with the report."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pandas as pd

from infra.store.keys import OURS
from tasks.context import Context
from tasks.reporting.pictures.gather import gather_cells
from validation.errors import ObjectMissing
from validation.records import Candidate, Decision, Evaluation, Exhibits, Look, PastNight, Verdict

# The history of the champion reaches back this many nights: more could not be told apart in a drawing.
PAST = 60
THREADS = 16


def exhibits(
    context: Context,
    decision: Decision,
    evaluation: Evaluation | None,
    predictions: pd.DataFrame | None,
    candidates: Sequence[Candidate],
) -> Exhibits:
    """Return a decision's exhibits: those that were stored with it, or, at its first report, what there is now."""
    if (stored := context.records.find(Exhibits, decision.id)) is not None:
        return stored
    gathered = gather_cells(context, decision, evaluation, predictions, candidates)
    earlier = _earlier(context, decision)
    crowned = [other for other in earlier if other.verdict is Verdict.PROMOTED]
    result = Exhibits(
        id=decision.id,
        cells=context.records.save_table(Exhibits, decision.id, "cells", gathered.table),
        counts=gathered.counts,
        ledger=_ledger(context, decision),
        looks=context.settings.gate.looks,
        error_budget=context.settings.gate.error_budget,
        past=_past(context, earlier),
        last_good=crowned[-1].id if crowned else None,
        left_out=tuple(gathered.left_out),
    )
    context.records.save(result, decision.id)
    return result


def _earlier(context: Context, decision: Decision) -> list[Decision]:
    """All decisions before this one, oldest first."""

    def load(id_: str) -> Decision | None:
        return context.records.find(Decision, id_)

    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(load, (id_ for id_ in context.records.ids(Decision) if id_ != decision.id))
        before = [other for other in found if other is not None and other.decided_at < decision.decided_at]
    return sorted(before, key=lambda other: (other.decided_at, other.id))


def _past(context: Context, earlier: Sequence[Decision]) -> tuple[PastNight, ...]:
    """How the champion of each earlier look did: after a promotion that is the new one."""

    def one(decision: Decision) -> PastNight | None:
        evaluation = context.records.find(Evaluation, decision.evaluation or "")
        if evaluation is None:
            return None
        promoted = decision.verdict is Verdict.PROMOTED
        metrics = evaluation.challenger_metrics if promoted else evaluation.champion_metrics
        if metrics is None:
            return None
        champion = decision.champion_before
        return PastNight(
            decision=decision.id,
            at=decision.decided_at,
            verdict=decision.verdict,
            version=None if promoted or champion is None else champion.version,
            model=None if promoted or champion is None else champion.model,
            balanced_accuracy=metrics.balanced_accuracy,
            sensitivity=metrics.sensitivity,
            specificity=metrics.specificity,
        )

    looked = [decision for decision in earlier if decision.evaluation][-PAST:]
    with ThreadPoolExecutor(THREADS) as pool:
        return tuple(night for night in pool.map(one, looked) if night is not None)


def _ledger(context: Context, decision: Decision) -> tuple[Look, ...]:
    """All looks at this generation of the holdout up to this decision, oldest first."""
    looks = []
    for info in context.store.list(f"{OURS}looks/{decision.generation}/"):
        try:
            look = Look.model_validate_json(context.store.get(info.key))
        except ObjectMissing:
            continue
        if look.looked_at <= decision.decided_at:
            looks.append(look)
    return tuple(sorted(looks, key=lambda look: look.number))
