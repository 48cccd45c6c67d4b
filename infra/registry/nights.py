"""A night in MLflow: one run with the verdict as tags, the challenger's metrics, and the report.

Used by the registry alone. Every night with a decision has one, also those that registered no version.
"""

from __future__ import annotations

from typing import Any

from infra.registry.mlflow_client import ms, origin
from infra.registry.versions import with_link
from infra.settings.groups import SiteSettings
from validation.records import FieldReport, Night

REPORT = "report.html"


def log_night(client: Any, experiment: str, night: Night, page: bytes, site: SiteSettings) -> None:
    """Log a night in its own run, unless a complete one exists."""
    runs = client.search_runs([experiment], f"tags.night = '{night.id}' and attributes.status = 'FINISHED'")
    if any(run.data.tags.get("decision", "") == (night.decision or "") for run in runs):
        return
    name = f"night {night.started_at:%Y-%m-%d} {night.verdict.value}"
    tags = _tags(night, site) | origin()
    run = client.create_run(experiment, start_time=ms(night.started_at), run_name=name, tags=tags).info.run_id
    client.log_batch(run, metrics=_metrics(night))
    client.log_text(run, page.decode(), REPORT)
    client.log_text(run, night.model_dump_json(indent=2), "night.json")
    # Last: a run that was killed before is not FINISHED, and is logged again.
    client.set_terminated(run, end_time=ms(night.finished_at))


def _tags(night: Night, site: SiteSettings) -> dict[str, str]:
    values = {
        "night": night.id,
        "verdict": night.verdict.value,
        "decision": night.decision,
        "challenger": night.challenger,
        "challenger_model": night.challenger_model,
        "champion_before": night.champion_before,
        "champion_after": night.champion_after,
        "synthetic": str(night.synthetic).lower(),
        "mlflow.note.content": with_link(night.sentence, night.decision or "", site),
    }
    return {name: value for name, value in values.items() if value is not None}


def field_tags(field: FieldReport) -> dict[str, str]:
    """Return promised beside found as tags of a champion's version: by rate, and by month."""
    tags = {
        "field": field.sentence,
        "field.patients": str(field.patients),
        "field.worse": ", ".join(field.worse) or "none",
    }
    for name, found in field.found.items():
        promised = field.promised.get(name)
        beside = f"{promised.value:.4f} promised, " if promised else ""
        tags[f"field.{name}"] = f"{beside}{found.value:.4f} found ({found.low:.4f} to {found.high:.4f})"
    for month in field.months:
        rates = {"sensitivity": month.sensitivity, "specificity": month.specificity}
        known = [f"{name} {value:.4f}" for name, value in rates.items() if value is not None]
        tags[f"field.{month.month}"] = ", ".join([f"{month.patients} patients", *known])
    return tags


def _metrics(night: Night) -> list[Any]:
    from mlflow.entities import Metric

    found = night.field.found if night.field is not None else {}
    measured = {f"judged.{name}": interval for name, interval in night.metrics.items()}
    measured |= {f"field.{name}": interval for name, interval in found.items()}
    return [
        Metric(f"{name}{end}", number, ms(night.finished_at), 0)
        for name, interval in measured.items()
        if interval is not None
        for end, number in (("", interval.value), (".low", interval.low), (".high", interval.high))
    ]
