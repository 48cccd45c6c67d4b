"""What is known of the champion, now or at a time, and of its changes: for `retrain champion` and `retrain history`."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any

from infra.registry.registry import Registry
from infra.store.keys import CHAMPION_ALIAS, MODEL_NAME, OURS, report_key
from tasks.champion.history import ENTRY, champion_at, current_champion, history, untouched_history
from tasks.context import Context
from tasks.field import field_report
from tasks.nights import load_all
from validation.records import ApprovalAnswer, ChampionRef, Decision, Evaluation, Promotion
from validation.redaction import mask

log = logging.getLogger(__name__)


def describe_champion(context: Context, registry: Registry, moment: datetime | None = None) -> dict[str, Any]:
    """Return the facts of the champion, now or at ``moment`` (with a time zone), as plain values.

    Raises:
        UsageError: when there is no champion yet, or there was none then.
    """
    entries = _compared(context, registry)
    entry: Promotion | None
    if moment is not None:
        entry = champion_at(entries, moment)
        champion, path = registry.version(entry.version_after), f"/{entry.version_after}"
    else:
        champion, path = current_champion(context, registry), f"@{CHAMPION_ALIAS}"
        entry = _entry_of_today(entries, champion)
    decision = context.records.find(Decision, entry.decision) if entry and entry.decision else None
    evaluation = context.records.find(Evaluation, decision.evaluation) if decision and decision.evaluation else None
    metrics = evaluation.challenger_metrics if evaluation else None
    intervals = metrics.intervals() if metrics else {}
    field = field_report(context, registry, champion) if moment is None else None
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
        "judging_patients": metrics.patients if metrics else None,
        "judging_cells": metrics.cells if metrics else None,
        "metrics": {name: interval.model_dump() for name, interval in intervals.items() if interval},
        "in_the_field": field.sentence if field else None,
        "field": field.model_dump(mode="json") if field else None,
        "model_sha256": champion.model_sha256,
        "registry": mask(registry.uri),
        "uri": f"models:/{MODEL_NAME}{path}",
    }
    return facts if moment is None else {"at": moment.isoformat(timespec="seconds"), **facts}


def describe_history(context: Context, registry: Registry | None) -> list[dict[str, Any]]:
    """Return every change of the champion, and every answer that changed nothing, oldest first, as plain values.

    Raises:
        RetrainError: when an entry is damaged, or differs from the registry's.
    """
    entries = _compared(context, registry)
    reports = {info.key for info in context.store.list(f"{OURS}reports/")}
    rows: list[tuple[datetime, dict[str, Any]]] = []

    def add(event: Promotion | ApprovalAnswer, action: str, change: Promotion | None = None) -> None:
        key = report_key(event.decision)
        row = {
            "number": change.number if change else None,
            "at": event.at.isoformat(timespec="seconds"),
            "action": action,
            "from": change.version_before if change else None,
            "to": change.version_after if change else None,
            "who": event.who,
            "why": event.why,
            "decision": event.decision or None,
            "report": f"{mask(context.store.uri)}/{key}" if key in reports else None,
            "checked": (change.checked or None) if change else None,
        }
        rows.append((event.at, row))

    for entry in entries:
        add(entry, entry.action, entry)
    carried_out = {entry.decision for entry in entries if entry.action == "approved"}
    for answer in load_all(context, ApprovalAnswer):
        if answer.decision not in carried_out:
            add(answer, "rejected" if answer.answer == "reject" else "approved, not carried out")
    return [row for _, row in sorted(rows, key=lambda timed: timed[0])]


def _compared(context: Context, registry: Registry | None) -> list[Promotion]:
    """Return the history, compared with the registry's; where that cannot be, the log says so."""
    if registry is not None and registry.entries_with_prefix(ENTRY):
        return untouched_history(context, registry)
    entries = history(context)
    if entries:
        log.warning("not compared with the registry, which %s", "has no history" if registry else "does not answer")
    return entries


def _entry_of_today(entries: list[Promotion], champion: ChampionRef) -> Promotion | None:
    if entries and entries[-1].version_after != champion.version:
        log.warning(
            "the history ends with version %s, the alias points to version %s: the next night, or the next command "
            "that changes the champion, corrects the alias",
            *(entries[-1].version_after, champion.version),
        )
    return next((entry for entry in reversed(entries) if entry.version_after == champion.version), None)
