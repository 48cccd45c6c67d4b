"""Validation on demand, and its findings with their meaning and advice: `retrain validate`, `retrain quarantine`."""

from __future__ import annotations

import pandas as pd

from tasks.context import Context
from tasks.nights import undamaged
from tasks.pull import pull
from tasks.validate import validate
from validation.errors import UsageError
from validation.findings import REASONS
from validation.records import ChampionRef, ValidationResult


def inspect_now(context: Context, champion: ChampionRef | None) -> ValidationResult:
    """Pull and validate what is in the store now; train and promote nothing."""
    with context.workspace.night_lock():
        return validate(context, pull(context), champion)


def last_validation(context: Context) -> ValidationResult:
    """Return the newest validation.

    Raises:
        UsageError: when nothing has been validated yet.
    """
    result = undamaged(lambda: context.records.latest("validation", ValidationResult))
    if result is None:
        raise UsageError("nothing has been validated yet", "start with `retrain validate` or `retrain run`")
    return result


def quarantined(
    context: Context, result: ValidationResult, *, reason: str = "", warnings: bool = False
) -> pd.DataFrame:
    """Return one row per finding: reason, severity, key, detail, sha256, new, meaning, advice; rejects first.

    Args:
        context: where the findings are stored.
        result: the validation that found them.
        reason: only findings of this reason, which may be a warning.
        warnings: also warnings; otherwise only what was left out or stopped the night.

    Raises:
        UsageError: for an unknown reason.
    """
    if reason and reason not in REASONS:
        raise UsageError(f"unknown reason {reason!r}", f"known are: {', '.join(REASONS)}")
    table = context.records.load_table(result.findings)
    if reason:
        table = table[table["reason"] == reason]
    elif not warnings:
        table = table[table["severity"] != "warn"]
    table = table.assign(
        meaning=table["reason"].map(lambda name: REASONS[name].meaning),
        advice=table["reason"].map(lambda name: REASONS[name].advice),
    )
    order = table["severity"].map({"stop": 0, "reject": 1, "warn": 2})
    return table.assign(order=order).sort_values(["order", "reason", "key"], kind="stable").drop(columns="order")
