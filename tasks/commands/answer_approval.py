"""Answers to approval requests: approve or reject a waiting challenger, once, in time, the champion unchanged."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Literal

from infra.registry.registry import Registry
from infra.store.keys import record_key
from tasks.champion.approval import open_requests
from tasks.champion.history import (
    ANSWER,
    ChampionChange,
    append_change,
    checked_why,
    reconcile_champion,
    refuse_changed,
    was_promoted,
)
from tasks.context import Context
from tasks.nights import find_decision
from tasks.promote import register_and_try
from validation.errors import ApprovalClosed, UsageError
from validation.records import ApprovalAnswer, ApprovalRequest, Candidate, ChampionRef, Decision

log = logging.getLogger(__name__)

Reply = Literal["approve", "reject"]
LONGEST_NAME = 100  # characters


def signed(name: str, account: str) -> str:
    """Return who answers, as the history records it: the person's own word first, then the account.

    Raises:
        UsageError: for a name that is empty or too long.
    """
    name = " ".join(name.split())
    if not 0 < len(name) <= LONGEST_NAME:
        raise UsageError(
            f"--name has {len(name):,} characters; expected 1 to {LONGEST_NAME}",
            'for instance --name "Dr. Ada Lovelace"',
        )
    return f"{name}, {account}"


def find_request(context: Context, text: str) -> tuple[Decision, ApprovalRequest]:
    """Return a decision with its approval request, open or closed; ``latest`` is the newest open one.

    Raises:
        UsageError: when there is none.
    """
    if text == "latest":
        requests = open_requests(context)
        if not requests:
            raise UsageError("no decision waits for an approval", "`retrain history` shows the answers")
        text = requests[-1].decision
    decision = find_decision(context, text)
    request = context.records.find(ApprovalRequest, decision.id)
    if request is None:
        raise UsageError(
            f"decision {decision.id} ({decision.verdict.value}) does not wait for an approval",
            "`retrain promote DECISION --why ...` makes a challenger champion by hand",
        )
    return decision, request


def answer(
    context: Context, registry: Registry, text: str, reply: Reply, *, why: str, who: str
) -> tuple[ApprovalAnswer, ChampionRef | None]:
    """Approve or reject the challenger of a waiting decision; return the answer and the champion afterwards.

    An approval that was killed before its challenger became champion is finished by approving again.

    Raises:
        ApprovalClosed: when it has been answered, or has expired.
        ChampionChanged: when the champion is not the one that the challenger was compared with.
        ModelFileInvalid, NotReproduced: when the model file is not the one that was judged; the champion stays.
    """
    why = checked_why(why)
    decision, request = find_request(context, text)
    with context.workspace.champion_lock():
        now = reconcile_champion(context, registry)
        given = context.records.find(ApprovalAnswer, decision.id)
        unfinished = given is not None and given.answer == reply == "approve" and not was_promoted(context, decision.id)
        if not unfinished:
            _refuse_closed(request, given)
        refuse_changed(now.version if now else None, request.champion.version if request.champion else None)
        if reply == "reject":
            return _give(context, registry, decision.id, reply, who, why), now
        challenger = context.records.load(Candidate, request.challenger)
        # Before the answer: an approval that cannot be carried out must not be recorded.
        reference, checked, evaluation = register_and_try(context, registry, decision, challenger)
        given = given or _give(context, registry, decision.id, reply, who, why)
        change = ChampionChange("approved", given.who, decision.id, now, reference, given.why, checked, evaluation)
        return given, append_change(context, registry, change)


def _refuse_closed(request: ApprovalRequest, given: ApprovalAnswer | None) -> None:
    if given is not None:
        word = {"approve": "approved", "reject": "rejected"}[given.answer]
        raise ApprovalClosed(
            f"decision {request.decision} was {word} by {given.who} at {given.at:%Y-%m-%d %H:%M} UTC: {given.why}",
            "`retrain promote DECISION --why ...` makes a challenger champion by hand",
        )
    if request.expires_at <= datetime.now(UTC):
        raise ApprovalClosed(
            f"the approval of decision {request.decision} expired at {request.expires_at:%Y-%m-%d %H:%M} UTC",
            "the next night brings a new challenger; `retrain promote DECISION --why ...` promotes this one by hand",
        )


def _give(context: Context, registry: Registry, decision: str, reply: Reply, who: str, why: str) -> ApprovalAnswer:
    """Record an answer; of two at once the first is recorded, and the second refused."""
    given = ApprovalAnswer(decision=decision, answer=reply, who=who, why=why, at=datetime.now(UTC))
    text = given.model_dump_json(indent=2)
    recorded = registry.put_if_absent(f"{ANSWER}{decision}", text)
    context.store.put(record_key(ApprovalAnswer.kind, decision), recorded.encode())
    if recorded != text:
        _refuse_closed(context.records.load(ApprovalRequest, decision), ApprovalAnswer.model_validate_json(recorded))
    log.info("decision %s: %s by %s", decision, reply, who)
    return given
