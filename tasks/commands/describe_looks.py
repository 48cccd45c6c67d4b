"""How many looks were taken and are left: for `retrain looks`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from infra.registry.registry import Registry
from tasks.context import Context
from tasks.judging.ledger import counted, next_free, read_ledger
from validation.gate import level_of_look


def describe_looks(context: Context, registry: Registry) -> dict[str, Any]:
    """Return the looks of the last 365 days as plain values."""
    rules, now = context.settings.gate, datetime.now(UTC)
    entries, level = read_ledger(context, registry), level_of_look(context.settings.gate)
    costs = [entry.cost(level) for entry in counted(entries, level, now)]
    spent, free = sum(costs), next_free(entries, rules, now)
    return {
        "looks_taken": len(costs),
        "looks_left": max(0, min(rules.looks - len(costs), int((rules.error_budget - spent) / level + 1e-6))),
        "error_budget": rules.error_budget,
        "error_budget_spent": spent,
        "next_is_free": free.date().isoformat() if free else None,
        "problems": [f"look {entry.number}: {entry.problem}" for entry in entries if entry.problem],
    }
