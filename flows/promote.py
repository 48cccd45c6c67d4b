"""The promotion flow: carry out a night's decision again, for instance after a registry outage."""

from __future__ import annotations

from prefect import flow

from flows.opening import initiator, opened
from infra.registry.registry import Registry
from tasks.nights import challenger_of
from tasks.promote import crown_task, promote_task
from validation.records import Decision, Verdict


@flow(name="promote", validate_parameters=True)
def promote_flow(decision: str) -> str | None:
    """Carry out a stored decision; return the champion's version afterwards. A second run changes nothing.

    Raises:
        UsageError: when the decision has no challenger.
    """
    with opened() as context:
        record = context.records.load(Decision, decision)
        challenger = challenger_of(context, record)
        task = crown_task if record.verdict is Verdict.PROMOTED else promote_task
        champion = task(context, record, challenger, Registry(context.settings), initiator())
    return champion.version if champion else None
