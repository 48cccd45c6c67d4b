"""The approval flow: a form on Prefect's page with which a person approves or rejects a challenger that waits.

Its parameters are checked by Prefect's server before there is a run. Nothing is suspended: the night is over, and this
flow does what `retrain approve` and `retrain reject` do.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from prefect import flow
from pydantic import Field

from flows.opening import initiator
from infra.privacy import redact_exceptions
from infra.registry.registry import Registry
from infra.runtime import prepare_environment
from infra.settings.settings import load_settings
from tasks.champion.history import LONGEST_WHY
from tasks.commands.answer_approval import answer as give_answer
from tasks.context import Context
from tasks.reporting.index import refresh_index


class Reply(StrEnum):
    """What a person can answer."""

    APPROVE = "approve"
    REJECT = "reject"


DecisionId = Annotated[str, Field(pattern=r"^([0-9a-f]{4,24}|latest)$")]
Why = Annotated[str, Field(pattern=r"\S", max_length=LONGEST_WHY)]


@flow(name="approve", validate_parameters=True)
def approve_flow(decision: DecisionId, answer: Reply, why: Why) -> str | None:
    """Answer a decision that awaits approval; return the champion's version afterwards.

    Args:
        decision: The decision that waits: its id, the start of it, or 'latest'.
        answer: approve makes the challenger champion, reject leaves the champion where it is.
        why: Your name and your reason; both are kept in the history.

    Raises:
        ApprovalClosed: when it has been answered, or has expired.
        ChampionChanged: when the champion is not the one that the challenger was compared with.
    """
    settings = load_settings()
    prepare_environment(settings)
    context = Context.open(settings)
    with redact_exceptions():
        registry = Registry(settings)
        _, champion = give_answer(context, registry, decision, answer.value, why=why, who=initiator())
        refresh_index(context)
    return champion.version if champion else None
