"""Exhibits: the images, earlier nights and looks that a report shows, gathered once and stored with the report."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pandas as pd

from infra.registry.registry import Registry
from tasks.context import Context
from tasks.judging.ledger import read_ledger
from tasks.nights import decisions, last_good_decision
from tasks.reporting.inputs import past_night
from tasks.reporting.pictures.gather import gather_cells
from validation.gate import level_of_look
from validation.records import Candidate, Decision, Evaluation, Exhibits, Look, PastNight

# The history of the champion reaches back this many nights: more would not be distinct in a drawing.
PAST = 60
THREADS = 16
# What the page shows of a look that cannot be read.
DAMAGED = "damaged, counts as spent"


def exhibits(
    context: Context,
    decision: Decision,
    evaluation: Evaluation | None,
    predictions: pd.DataFrame | None,
    candidates: Sequence[Candidate],
) -> Exhibits:
    """Return a decision's stored exhibits; at its first report, gather and store them."""
    if (stored := context.records.find_whole(Exhibits, decision.id)) is not None:
        return stored
    gathered = gather_cells(context, decision, evaluation, predictions, candidates)
    ledger, damaged = _ledger(context, decision)
    last_good = last_good_decision(context, decision.decided_at)
    result = Exhibits(
        id=decision.id,
        cells=context.records.save_table(Exhibits, decision.id, "cells", gathered.table),
        counts=gathered.counts,
        ledger=ledger,
        looks=context.settings.gate.looks,
        error_budget=context.settings.gate.error_budget,
        past=_past(context, decision),
        last_good=last_good.id if last_good else None,
        left_out=(*gathered.left_out, *damaged),
    )
    return context.records.save_once(result, decision.id)


def _past(context: Context, tonight: Decision) -> tuple[PastNight, ...]:
    """How the champion of each look before ``tonight`` did, oldest first: after a promotion the new champion."""

    def one(decision: Decision) -> PastNight | None:
        return past_night(decision, context.records.find(Evaluation, decision.evaluation or ""))

    looked = [d for d in decisions(context) if d.evaluation and d.decided_at < tonight.decided_at][:PAST]
    with ThreadPoolExecutor(THREADS) as pool:
        return tuple(night for night in pool.map(one, reversed(looked)) if night is not None)


def _ledger(context: Context, decision: Decision) -> tuple[tuple[Look, ...], list[str]]:
    """All looks that share a budget with this decision's, oldest first, damaged ones as spent; and what is damaged."""
    level = level_of_look(context.settings.gate)
    looks, damaged = [], []
    for entry in read_ledger(context, Registry(context.settings)):
        if entry.look is None:
            # When it was taken is unknown; the page sorts by number.
            looks.append(Look(number=max(1, entry.number), challenger=DAMAGED, champion=DAMAGED,
                              spent=entry.cost(level), looked_at=decision.decided_at))  # fmt: skip
            damaged.append(f"Look {entry.number} counts as spent: {entry.problem}.")
        elif entry.counts(decision.decided_at) and entry.look.looked_at <= decision.decided_at:
            looks.append(entry.look)
    return tuple(looks), damaged
