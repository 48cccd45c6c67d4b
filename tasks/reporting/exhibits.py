"""Exhibits: the images, earlier nights and looks that a report shows, gathered once and stored with the report."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pandas as pd

from infra.store.keys import OURS
from tasks.context import Context
from tasks.reporting.inputs import past_night
from tasks.reporting.pictures.gather import gather_cells
from validation.errors import ObjectMissing
from validation.records import Candidate, Decision, Evaluation, Exhibits, Look, PastNight, Verdict

# The history of the champion reaches back this many nights: more would not be distinct in a drawing.
PAST = 60
THREADS = 16


def exhibits(
    context: Context,
    decision: Decision,
    evaluation: Evaluation | None,
    predictions: pd.DataFrame | None,
    candidates: Sequence[Candidate],
) -> Exhibits:
    """Return a decision's stored exhibits; at its first report, gather and store them."""
    if (stored := context.records.find(Exhibits, decision.id)) is not None:
        return stored
    gathered = gather_cells(context, decision, evaluation, predictions, candidates)
    earlier = _earlier(context, decision)
    promoted = [other for other in earlier if other.verdict is Verdict.PROMOTED]
    result = Exhibits(
        id=decision.id,
        cells=context.records.save_table(Exhibits, decision.id, "cells", gathered.table),
        counts=gathered.counts,
        ledger=_ledger(context, decision),
        looks=context.settings.gate.looks,
        error_budget=context.settings.gate.error_budget,
        past=_past(context, earlier),
        last_good=promoted[-1].id if promoted else None,
        left_out=tuple(gathered.left_out),
    )
    context.records.save(result, decision.id)
    return result


def _earlier(context: Context, decision: Decision) -> list[Decision]:
    """Return all decisions before this one, oldest first."""
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(partial(context.records.find, Decision), context.records.ids(Decision))
        before = [other for other in found if other is not None and other.decided_at < decision.decided_at]
    return sorted(before, key=lambda other: (other.decided_at, other.id))


def _past(context: Context, earlier: Sequence[Decision]) -> tuple[PastNight, ...]:
    """Return how the champion did at each earlier look."""

    def one(decision: Decision) -> PastNight | None:
        return past_night(decision, context.records.find(Evaluation, decision.evaluation or ""))

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
