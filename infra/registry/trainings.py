"""Every training of a night in MLflow: a run for each member of each CNN, below one for the night, to compare there.

An experiment of its own, which nothing else in this project reads: whatever is done to it on MLflow's page, the
champion and its history stay as they were. Used by ``infra.registry.registry`` alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from infra.provenance import code_revision, person
from infra.registry.mlflow_client import all_pages
from infra.store.keys import record_key
from validation.records import Candidate, EpochRecord, Member, Night, Split
from validation.redaction import mask

NOT_CHOSEN = "not chosen"
PARENT = "mlflow.parentRunId"
# MLflow takes this many metrics in one call.
MOST_METRICS = 1_000
# Fields of an epoch, by the name of their curve; "tuning" as everywhere outside the frameworks.
_CURVES = {
    "train_loss": "train_loss",
    "train_accuracy": "train_accuracy",
    "valid_loss": "tuning_loss",
    "valid_accuracy": "tuning_accuracy",
    "learning_rate": "learning_rate",
}


def log_trainings(client: Any, experiment: str, night: Night, candidates: Sequence[Candidate], store: str) -> None:
    """Log a night's trainings, and its candidates as models; what was logged before is not logged again.

    A member that an earlier night has trained is in that night. What failed is there too, with the reason.
    """
    parents = client.search_runs([experiment], f"tags.night = '{night.id}' and tags.level = 'night'")
    if any(parent.info.status == "FINISHED" for parent in parents):
        return
    store = mask(store).rstrip("/")
    day = f"{night.started_at:%Y-%m-%d}"
    common = {"night": night.id, "decision": night.decision or "none", "synthetic": str(night.synthetic).lower()}
    common |= _origin()
    if parents:  # of a night that was killed here
        parent = parents[0].info.run_id
    else:
        tags = {**common, "level": "night", "mlflow.note.content": night.sentence}
        parent = _started(client, experiment, f"night {day}", tags, night.started_at)
    common |= {"level": "member", PARENT: parent}
    for candidate in candidates:
        outcome = night.verdict.value if candidate.id == night.challenger else NOT_CHOSEN
        for member in candidate.members:
            known = client.search_runs([experiment], f"tags.member = '{member.id}'")
            for killed in (run.info.run_id for run in known if run.info.status == "RUNNING"):
                client.delete_run(killed)
            if not any(run.info.status == "FINISHED" for run in known):
                name = f"{candidate.model} {member.spec.member + 1}/{len(candidate.members)} of {day}"
                tags = {**common, "outcome": outcome, "candidate": candidate.id}
                _log_member(client, experiment, name, tags, member, store)
    below = all_pages(client.search_runs, [experiment], f"tags.`{PARENT}` = '{parent}'")
    there = {run.info.run_name for run in below}
    for what, why in night.failed_trainings.items():
        if (name := f"{what} of {day}") not in there:
            tags = {**common, "outcome": "failed", "cnn": what.partition(",")[0], "mlflow.note.content": why}
            failed = _started(client, experiment, name, tags, night.finished_at)
            client.set_terminated(failed, "FAILED", _ms(night.finished_at))
    for candidate in candidates:
        _log_model(client, experiment, parent, f"{candidate.model}-{day}", candidate, store)
    client.set_tag(parent, "verdict", night.verdict.value)
    # Last: a run that was killed before is not FINISHED, and is completed.
    client.set_terminated(parent, end_time=_ms(night.finished_at))


def _log_member(client: Any, experiment: str, name: str, tags: dict[str, str], member: Member, store: str) -> None:
    """Log one training, in four writes of the database: begun, measured, its cells, ended."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

    spec = member.spec
    started = member.started_at or member.created_at - timedelta(seconds=member.seconds)
    tags = {
        **tags,
        **{"member": member.id, "cnn": spec.model, "device": member.device, "stopped": member.stopped},
        **{f"version.{name}": number for name, number in member.versions.items()},
        "weights": f"{store}/{member.weights_key}",
    }
    run = _started(client, experiment, name, tags, started)
    params: dict[str, Any] = {"cnn": spec.model, "member": spec.member + 1, "seed": spec.seed + spec.member}
    params |= {"side": spec.side, "recipe_version": spec.recipe_version, "device": member.device}
    params |= {f"recipe.{name}": value for name, value in spec.recipe.items()}
    # As fitted: smaller than the recipe's when memory ran out.
    params |= {"batch_size": member.batch_size} if member.batch_size else {}
    values = {"seconds": member.seconds, "best_epoch": member.best_epoch, "peak_memory_mb": member.peak_memory_mb}
    values |= {"train_cells": member.train_cells, "train_patients": member.train_patients}
    values |= {"tuning_patients": member.tuning_patients}
    metrics = [Metric(name, float(value), _ms(member.created_at), 0) for name, value in values.items()]
    for epoch, at in _ends(member, started):
        for field, curve in _CURVES.items():
            if (value := getattr(epoch, field)) is not None:
                metrics.append(Metric(curve, float(value), _ms(at), epoch.epoch))
    client.log_batch(run, metrics[: MOST_METRICS // 2], [Param(name, str(value)) for name, value in params.items()])
    for begin in range(MOST_METRICS // 2, len(metrics), MOST_METRICS):
        client.log_batch(run, metrics[begin : begin + MOST_METRICS])
    cells = Dataset(
        name=f"split {spec.split[:8]}, all but fold {spec.member + 1}",
        digest=spec.split,
        source_type="store",
        source=json.dumps({"uri": f"{store}/{record_key(Split.kind, spec.split)}"}),
        profile=json.dumps({"num_rows": member.train_cells, "patients": member.train_patients}),
    )
    client.log_inputs(run, [DatasetInput(cells, [InputTag("mlflow.data.context", "training")])])
    client.set_terminated(run, end_time=_ms(member.created_at))


def _log_model(client: Any, experiment: str, parent: str, name: str, candidate: Candidate, store: str) -> None:
    """Log a candidate as a model whose file is in the store, with its metrics on the tuning patients."""
    from mlflow.entities import Metric

    known = f"tags.candidate = '{candidate.id}'"
    if client.search_logged_models([experiment], known, max_results=1):
        return
    file = {"candidate": candidate.id, "sha256": candidate.model_sha256, "mlflow.model.isExternal": "true"}
    file["file"] = f"{store}/{candidate.model_key}"
    params = {"cnn": candidate.model, "members": str(len(candidate.members)), "threshold": repr(candidate.threshold)}
    model = client.create_logged_model(experiment, name, parent, tags=file, params=params, model_type="onnx")
    made = _ms(candidate.created_at)
    found = {name: interval.value for name, interval in candidate.tuning.intervals().items() if interval is not None}
    metrics = [
        Metric(f"{candidate.model}.tuning.{name}", value, made, 0, model_id=model.model_id, run_id=parent)
        for name, value in found.items()
    ]
    client.log_batch(parent, metrics)
    client.finalize_logged_model(model.model_id, "READY")


def _started(client: Any, experiment: str, name: str, tags: dict[str, str], at: datetime) -> str:
    return str(client.create_run(experiment, start_time=_ms(at), run_name=name, tags=tags).info.run_id)


def _origin() -> dict[str, str]:
    """Return who ran which code, by the tags that MLflow's page shows."""
    revision = code_revision()
    return {
        "mlflow.user": person(),
        "mlflow.source.name": "retrain",
        "mlflow.source.type": "JOB",
        "mlflow.source.git.commit": revision.commit,
        "mlflow.source.git.dirty": revision.dirty,
    }


def _ends(member: Member, started: datetime) -> Iterator[tuple[EpochRecord, datetime]]:
    """Yield each epoch and when it ended; of members from before that was recorded, by adding up their seconds."""
    for epoch in member.history:
        started += timedelta(seconds=epoch.seconds)
        yield epoch, epoch.ended_at or started


def _ms(at: datetime) -> int:
    return int(at.timestamp() * 1_000)
