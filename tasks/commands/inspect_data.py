"""What validation found, for people: by reason, with what each reason means and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from tasks.context import Context
from tasks.pull import pull
from tasks.validate import validate
from validation.errors import UsageError
from validation.findings import REASONS
from validation.records import ChampionRef, Snapshot, ValidationResult


@dataclass(frozen=True)
class Inspection:
    """A validation, and the snapshot that it looked at."""

    snapshot: Snapshot
    result: ValidationResult


def inspect_now(context: Context, champion: ChampionRef | None) -> Inspection:
    """Pull and validate what lies in the store now; nothing is trained and nothing promoted."""
    with context.workspace.night_lock():
        snapshot = pull(context)
        result = validate(context, snapshot, champion)
    return Inspection(snapshot, result)


def last_validation(context: Context) -> ValidationResult:
    """Return the newest validation.

    Raises:
        UsageError: when nothing has been validated yet.
    """
    result = context.records.latest("validation", ValidationResult)
    if result is None:
        raise UsageError("nothing has been validated yet", "start with `retrain validate` or `retrain run`")
    return result


def quarantined(
    context: Context, result: ValidationResult, *, reason: str = "", warnings: bool = False
) -> pd.DataFrame:
    """Return one row a finding: reason, severity, key, detail, sha256, new, meaning, advice; rejects first.

    Args:
        context: where the findings lie.
        result: the validation that found them.
        reason: only findings of this reason; it may be a warning.
        warnings: also what only warns; without it, what was left out or stopped the night.

    Raises:
        UsageError: for a reason that does not exist.
    """
    if reason and reason not in REASONS:
        raise UsageError(f"no reason {reason!r}", f"known are: {', '.join(REASONS)}")
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
