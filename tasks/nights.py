"""Find stored nights and decisions: by id, by the beginning of an id, ``latest``, or all of them, newest first."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from tasks.context import Context
from validation.errors import ObjectMissing, RetrainError, Unreachable, UsageError
from validation.records import Candidate, Decision, Night, Record, Verdict

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Record)
T = TypeVar("T")

THREADS = 16
NO_USABLE_CHAMPION = (Verdict.CHAMPION_UNUSABLE, Verdict.INVALID_DATA)


def undamaged(load: Callable[[], T | None]) -> T | None:
    """Return the record or table that ``load`` reads; for a damaged one None, with a warning."""
    try:
        return load()
    except Unreachable:
        raise
    except RetrainError as error:
        log.warning("skipped: %s", error.message)
        return None


def load_all(context: Context, record: type[R], *, strict: bool = False) -> list[R]:
    """Return all stored records of a kind, sorted by id, without the damaged ones, which the log names.

    Raises:
        RetrainError: with ``strict``, for the first damaged record.
        StoreUnreachable: when the store does not answer.
    """
    records = context.records
    load = partial(records.load, record) if strict else partial(records.find, record)
    with ThreadPoolExecutor(THREADS) as pool:
        return [loaded for loaded in pool.map(load, records.ids(record)) if loaded is not None]


def latest_of(context: Context, pointer: str, record: type[R], order: Callable[[R], Any]) -> R | None:
    """Return what a moving pointer holds; where it is damaged or lost, the newest record by ``order``."""
    pointed = undamaged(lambda: context.records.latest(pointer, record))
    return pointed or max(load_all(context, record), key=order, default=None)


def nights(context: Context) -> list[Night]:
    """Return all finished nights, newest first."""
    return sorted(load_all(context, Night), key=_finished, reverse=True)


def decisions(context: Context, *, strict: bool = False) -> list[Decision]:
    """Return all decisions, newest first, those of unfinished nights too; ``strict`` as in ``load_all``."""
    return sorted(load_all(context, Decision, strict=strict), key=lambda d: (d.decided_at, d.id), reverse=True)


def finished_decisions(context: Context) -> Iterator[Decision]:
    """Yield the decisions of finished nights, newest night first; each is read when it is asked for."""
    for night in nights(context):
        if night.decision is not None:
            decision = context.records.find(Decision, night.decision)
            if decision is not None:
                yield decision


def newest_night(context: Context) -> Night | None:
    """Return the finished night that ended last."""
    return latest_of(context, "night", Night, _finished)


def find_night(context: Context, text: str) -> Night:
    """Return the newest night of a decision, given by its id, the beginning of it, or ``latest``.

    Raises:
        UsageError: when no decision matches, or more than one does.
        ObjectMissing: when the decision's night was not finished.
    """
    if text == "latest":
        night = newest_night(context)
        if night is None:
            raise UsageError("no night has come to a decision yet", "start one with `retrain run`")
        return night
    decision = context.records.one_beginning(Decision, text)
    for night in nights(context):
        if night.decision == decision:
            return night
    raise ObjectMissing(f"the night of decision {decision} was not finished", "run `retrain run` again")


def find_decision(context: Context, text: str) -> Decision:
    """Return a decision by its id, the beginning of it, or ``latest``: that of the newest finished night.

    Raises:
        UsageError: when no decision matches, or more than one does.
    """
    if text != "latest":
        return context.records.load(Decision, context.records.one_beginning(Decision, text))
    decision = find_night(context, text).decision
    if decision is None:
        raise UsageError("no night has come to a decision yet", "start one with `retrain run`")
    return context.records.load(Decision, decision)


def challenger_of(context: Context, decision: Decision) -> Candidate:
    """Return the challenger of a decision.

    Raises:
        UsageError: when the decision has none.
    """
    if decision.challenger is None:
        raise UsageError(
            f"decision {decision.id} ({decision.verdict.value}) has no challenger to promote",
            "name a decision that has one: `retrain history`",
        )
    return context.records.load(Candidate, decision.challenger)


def last_good_decision(context: Context, before: datetime | None = None) -> Decision | None:
    """Return the newest decision of a finished night whose champion could be used, made before ``before``."""
    good = (decision for decision in finished_decisions(context) if decision.verdict not in NO_USABLE_CHAMPION)
    return next((decision for decision in good if before is None or decision.decided_at < before), None)


def _finished(night: Night) -> tuple[datetime, datetime, str]:
    return night.finished_at, night.started_at, night.id
