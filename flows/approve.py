"""The approval flow: a form on Prefect's page with which a person approves or rejects a waiting challenger.

Prefect's server checks the parameters before it creates a run. Nothing is suspended: the night is over, and this flow
does what `retrain approve` and `retrain reject` do.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from prefect import flow
from pydantic import Field

from flows.opening import initiator, opened
from infra.registry.registry import Registry
from tasks.champion.history import LONGEST_WHY
from tasks.commands.answer_approval import LONGEST_NAME, signed
from tasks.commands.answer_approval import answer as give_answer
from tasks.report import show_answer


class Reply(StrEnum):
    """What a person can answer."""

    APPROVE = "approve"
    REJECT = "reject"


DecisionId = Annotated[str, Field(pattern=r"^([0-9a-f]{4,24}|latest)$")]
Name = Annotated[str, Field(pattern=r"\S", max_length=LONGEST_NAME)]
Why = Annotated[str, Field(pattern=r"\S", max_length=LONGEST_WHY)]


@flow(name="approve", validate_parameters=True)
def approve_flow(decision: DecisionId, answer: Reply, name: Name, why: Why) -> str | None:
    """Answer a decision that awaits approval; return the champion's version afterwards.

    Args:
        decision: The decision that waits: its id, the start of its id, or 'latest'.
        answer: approve makes the challenger champion, reject leaves the champion in place.
        name: Your name; the history records it beside the account that ran this.
        why: Your reason; it is recorded too. The description has a link to what waits and to its report.

    Raises:
        ApprovalClosed: when it has been answered, or has expired.
        ChampionChanged: when the champion is not the one that the challenger was compared with.
    """
    with opened() as context:
        registry = Registry(context.settings)
        who = signed(name, initiator())
        given, champion = give_answer(context, registry, decision, answer.value, why=why, who=who)
        show_answer(context, given.decision)
    return champion.version if champion else None
