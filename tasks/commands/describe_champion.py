"""What is known of the champion, of today or of a moment: its version, where it came from, and how good it was."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any

from infra.registry.registry import Registry
from infra.store.keys import CHAMPION_ALIAS, MODEL_NAME, OURS, report_key
from tasks.champion.history import champion_at, current_champion, history
from tasks.context import Context
from validation.records import ApprovalAnswer, ChampionRef, Decision, Evaluation, Promotion
from validation.redaction import mask

log = logging.getLogger(__name__)

# One line of the history as it is told.
ROW = ("number", "at", "action", "from", "to", "who", "why", "decision", "report", "checked")


def describe_champion(context: Context, registry: Registry, moment: datetime | None = None) -> dict[str, Any]:
    """Return the facts of the champion, of today or of ``moment`` (with a time zone), as plain values.

    Raises:
        UsageError: when there is no champion yet, or there was none then.
    """
    entries = history(context)
    if moment is not None:
        entry: Promotion | None = champion_at(entries, moment)
        champion = registry.version(champion_at(entries, moment).version_after)
    else:
        champion = current_champion(registry)
        entry = _entry_of_today(entries, champion)
    decision = context.records.find(Decision, entry.decision) if entry and entry.decision else None
    evaluation = context.records.find(Evaluation, decision.evaluation) if decision and decision.evaluation else None
    metrics = evaluation.challenger_metrics if evaluation else None
    facts = {
        "version": champion.version,
        "model": champion.model,
        "since": entry.at.isoformat(timespec="seconds") if entry else None,
        "action": entry.action if entry else None,
        "who": entry.who if entry else None,
        "why": entry.why if entry else None,
        "checked": (entry.checked or None) if entry else None,
        "decision": decision.id if decision else None,
        "candidate": champion.candidate,
        "threshold": champion.threshold,
        "synthetic": decision.synthetic if decision else None,
        "holdout_patients": metrics.patients if metrics else None,
        "holdout_cells": metrics.cells if metrics else None,
        "metrics": {name: interval.model_dump() for name, interval in metrics.intervals().items() if interval}
        if metrics
        else {},
        "model_sha256": champion.model_sha256,
        "registry": mask(registry.uri),
        "uri": f"models:/{MODEL_NAME}@{CHAMPION_ALIAS}"
        if moment is None
        else f"models:/{MODEL_NAME}/{champion.version}",
    }
    return facts if moment is None else {"at": moment.isoformat(timespec="seconds"), **facts}


def tell_history(context: Context) -> list[dict[str, Any]]:
    """Return every change of the champion, and every answer that changed nothing, oldest first, as plain values."""
    entries = history(context)
    reports = {info.key for info in context.store.list(f"{OURS}reports/")}
    rows: list[tuple[datetime, dict[str, Any]]] = [
        (
            entry.at,
            {
                "number": entry.number,
                "at": entry.at.isoformat(timespec="seconds"),
                "action": entry.action,
                "from": entry.version_before,
                "to": entry.version_after,
                "who": entry.who,
                "why": entry.why,
                "decision": entry.decision or None,
                "report": _report(context, entry.decision, reports),
                "checked": entry.checked or None,
            },
        )
        for entry in entries
    ]
    carried_out = {entry.decision for entry in entries if entry.action == "approved"}
    for answer in (context.records.load(ApprovalAnswer, id_) for id_ in context.records.ids(ApprovalAnswer)):
        if answer.decision in carried_out:
            continue  # told by its entry
        action = "rejected" if answer.answer == "reject" else "approved, not carried out"
        rows.append(
            (
                answer.at,
                dict.fromkeys(ROW)
                | {
                    "at": answer.at.isoformat(timespec="seconds"),
                    "action": action,
                    "who": answer.who,
                    "why": answer.why,
                    "decision": answer.decision,
                    "report": _report(context, answer.decision, reports),
                },
            )
        )
    return [row for _, row in sorted(rows, key=lambda timed: timed[0])]


def _entry_of_today(entries: list[Promotion], champion: ChampionRef) -> Promotion | None:
    if entries and entries[-1].version_after != champion.version:
        log.warning(
            "the history ends with version %s, the alias is at version %s: the next night, or the next command that "
            "changes the champion, sets the alias right",
            *(entries[-1].version_after, champion.version),
        )
    return next((entry for entry in reversed(entries) if entry.version_after == champion.version), None)


def _report(context: Context, decision: str, reports: set[str]) -> str | None:
    key = report_key(decision)
    return f"{mask(context.store.uri)}/{key}" if key in reports else None
