"""The holdout as a person sees it: what the current generation holds and has spent, and how a new one is begun."""

from __future__ import annotations

from typing import Any

from tasks.context import Context
from tasks.judging.generations import Current, current_generation, rotate
from tasks.judging.ledger import read_ledger
from tasks.nights import finished_decisions
from tasks.pull import pull
from tasks.validate import validate
from validation.errors import DataInvalid
from validation.gate import level_of_look
from validation.records import Decision, Generation, SideCount, Split


def begin_generation(context: Context, why: str) -> Generation:
    """Look what has arrived, and begin a new generation over it.

    Raises:
        RotationRefused: when too few patients are new to all models.
        DataInvalid: when the data as a whole must not be used.
    """
    validation = validate(context, pull(context))
    if not validation.valid:
        failed = [check.name for check in validation.checks if not check.passed and check.severity == "invalid"]
        raise DataInvalid(
            f"no new generation over data that must not be trained on: {', '.join(failed)}",
            "`retrain run` tells all that is wrong with it",
        )
    return rotate(context, context.records.load_table(validation.facts), why)


def holdout_status(context: Context) -> dict[str, Any]:
    """Return the current generation's facts as plain values; what no night has measured yet is None."""
    generation, rules = current_generation(context), context.settings.gate
    entries = read_ledger(context, generation.name)
    level = level_of_look(rules)
    costs = [entry.cost(level) for entry in entries]
    spent = sum(costs)
    taken = sum(cost > 0 for cost in costs)
    left = max(0, min(rules.looks - taken, int((rules.error_budget - spent) / level + 1e-6)))
    decisions = [d for d in finished_decisions(context) if d.generation == generation.name]
    holdout = _holdout(context, generation, decisions)
    shown = next((d for d in decisions if d.detectable_difference is not None), None)
    return {
        "generation": generation.name,
        "since": generation.record.since.isoformat(timespec="seconds") if generation.record else None,
        "why": generation.record.why if generation.record else None,
        "who": generation.record.who if generation.record else None,
        "previous": generation.record.previous if generation.record else None,
        "patients": holdout.patients if holdout else None,
        "parasitized_cells": holdout.positive if holdout else None,
        "uninfected_cells": holdout.negative if holdout else None,
        "looks_taken": taken,
        "looks_left": left,
        "looks_damaged": sum(entry.look is None for entry in entries),
        "error_budget": rules.error_budget,
        "error_budget_spent": round(spent, 6),
        "detectable_difference": shown.detectable_difference if shown else None,
        "measured_by": shown.id if shown else None,
    }


def _holdout(context: Context, generation: Current, decisions: list[Decision]) -> SideCount | None:
    for decision in decisions:
        split = context.records.find(Split, decision.split) if decision.split else None
        if split is not None:
            return split.holdout
    return generation.record.holdout if generation.record else None
