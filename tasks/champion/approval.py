"""Approval: where the settings require it, a challenger that passed every gate waits, for a set time, for a person.

The request and its answer are separate records; the decision and its night do not change.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from infra.prefect_api import form_address
from infra.settings.settings import Settings
from tasks.context import Context
from validation.gate import GateResult
from validation.records import ApprovalAnswer, ApprovalRequest, Decision, Verdict

log = logging.getLogger(__name__)

FORM = "approve/approval"


def waits_for_person(settings: Settings) -> list[str]:
    """Return what the approval setting adds to a decision's id: nothing where promotions are automatic."""
    return ["person"] if settings.promotion.approval == "person" else []


def leave_to_person(settings: Settings, judgement: GateResult) -> GateResult:
    """Turn a promotion into a request for approval where the settings require one."""
    if judgement.verdict is not Verdict.PROMOTED or not waits_for_person(settings):
        return judgement
    return replace(judgement, verdict=Verdict.AWAITING_APPROVAL)


def request_approval(context: Context, decision: Decision) -> ApprovalRequest:
    """Store a request for approval, once: a second call does not extend its time."""
    if (stored := context.records.find(ApprovalRequest, decision.id)) is not None:
        return stored
    now = datetime.now(UTC)
    request = ApprovalRequest(
        decision=decision.id,
        challenger=decision.challenger or "",
        champion=decision.champion_before,
        sentence=decision.sentence,
        requested_at=now,
        expires_at=now + timedelta(hours=context.settings.promotion.approval_hours),
        form_url=form_address(FORM, {"decision": decision.id}),
    )
    request = context.records.save_once(request, decision.id)
    log.warning(
        "decision %s waits for a person until %s UTC: `retrain approve %s --why ...` or `retrain reject ...`",
        *(decision.id, f"{request.expires_at:%Y-%m-%d %H:%M}", decision.id),
    )
    return request


def open_request(context: Context, decision: str) -> ApprovalRequest | None:
    """Return a decision's request if it can still be answered."""
    request = context.records.find(ApprovalRequest, decision)
    if request is None or context.records.find(ApprovalAnswer, decision) or request.expires_at <= datetime.now(UTC):
        return None
    return request


def open_requests(context: Context) -> list[ApprovalRequest]:
    """Return all requests that can still be answered, oldest first."""
    requests = [open_request(context, id_) for id_ in context.records.ids(ApprovalRequest)]
    return sorted((request for request in requests if request), key=lambda request: request.requested_at)
