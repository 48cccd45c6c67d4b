"""What is known of the champion: its version, where it came from, and how good it was when it was promoted."""

from __future__ import annotations

from typing import Any

from infra.keys import CHAMPION_ALIAS, MODEL_NAME
from infra.registry import Registry
from infra.settings import mask
from tasks.context import Context
from tasks.predict import current_champion
from tasks.promote import history
from validation.records import Decision, Evaluation


def describe_champion(context: Context, registry: Registry) -> dict[str, Any]:
    """Return the champion's facts as plain values.

    Raises:
        UsageError: when there is no champion yet.
    """
    champion = current_champion(registry)
    entries = [entry for entry in history(context) if entry.version_after == champion.version]
    decision = context.records.find(Decision, entries[-1].decision) if entries else None
    evaluation = context.records.find(Evaluation, decision.evaluation) if decision and decision.evaluation else None
    metrics = evaluation.challenger_metrics if evaluation else None
    return {
        "version": champion.version,
        "model": champion.model,
        "since": entries[-1].at.isoformat(timespec="seconds") if entries else None,
        "why": entries[-1].why if entries else None,
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
        "uri": f"models:/{MODEL_NAME}@{CHAMPION_ALIAS}",
    }
