"""Finding stored nights and decisions."""

from __future__ import annotations

from tasks.context import Context
from validation.errors import ObjectMissing, UsageError
from validation.records import (
    Decision,
    Night,
    Verdict,
)


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
    found = context.records.one_beginning(Decision, decision)
    try:
        return next(
            night
            for night in (context.records.load(Night, id_) for id_ in context.records.ids(Night))
            if night.decision == found
        )
    except StopIteration:
        raise ObjectMissing(f"the night of decision {found} was not finished", "run `retrain run` again") from None


def find_decision(context: Context, text: str) -> Decision:
    """Return a stored decision by its id, the beginning of it, or ``latest``.

    Raises:
        UsageError: when there is none, or more than one begins like that.
    """
    if text == "latest":
        night = context.records.latest("night", Night)
        if night is None or night.decision is None:
            raise UsageError("no night has come to a decision yet", "start one with `retrain run`")
        return context.records.load(Decision, night.decision)
    return context.records.load(Decision, context.records.one_beginning(Decision, text))


def last_good_decision(context: Context) -> Decision | None:
    """Return the newest finished night's decision that rests on models that could be used, if there is one."""
    nights = [context.records.load(Night, id_) for id_ in context.records.ids(Night)]
    for night in sorted(nights, key=lambda night: night.finished_at, reverse=True):
        if night.decision and night.verdict not in (Verdict.CHAMPION_UNUSABLE, Verdict.INVALID_DATA):
            return context.records.find(Decision, night.decision)
    return None
