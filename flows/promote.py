"""The promotion flow: make what a night decided true again, for instance after the registry was away."""

from __future__ import annotations

from prefect import flow

from flows.opening import initiator
from infra.privacy import redact_exceptions
from infra.registry.registry import Registry
from infra.runtime import prepare_environment
from infra.settings.settings import load_settings
from tasks.context import Context
from tasks.promote import promote_task
from validation.errors import UsageError
from validation.records import Candidate, Decision


@flow(name="promote", validate_parameters=True)
def promote_flow(decision: str) -> str | None:
    """Carry out a stored decision; return the champion's version afterwards. Done twice, it changes nothing.

    Raises:
        UsageError: when the decision has no challenger.
    """
    settings = load_settings()
    prepare_environment(settings)
    context = Context.open(settings)
    record = context.records.load(Decision, decision)
    if record.challenger is None:
        raise UsageError(f"decision {decision} ({record.verdict.value}) has no challenger to promote")
    challenger = context.records.load(Candidate, record.challenger)
    with redact_exceptions():
        champion = promote_task(context, record, challenger, Registry(settings), initiator())
    return champion.version if champion else None
