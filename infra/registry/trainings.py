"""Every training of a night in MLflow: a run for each member of each CNN, below one for the night, to compare there.

An experiment of its own, which nothing else in this project reads: whatever is done to it on MLflow's page, the
champion and its history stay as they were. Used by ``infra.registry`` alone, but for what a night tried.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from infra.registry.mlflow_client import all_pages, ms, origin
from infra.store.keys import record_key
from validation.errors import TrainingFailed
from validation.records import Candidate, EpochRecord, Member, Night, Split, TrainSpec
from validation.redaction import mask

# What came of a training whose candidate did not challenge, whose CNN made no candidate, that left no model.
NOT_CHOSEN, TOO_FEW, FAILED = "not chosen", "too few members", "failed"
# Instead of a decision: of a night in which no CNN could be trained.
NO_DECISION = "none"
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


@dataclass(frozen=True)
class Tried:
    """What a night trained, whatever came of it: members, also of a CNN of which too few were left, and failures."""

    members: list[Member] = field(default_factory=list)
    failures: list[tuple[TrainSpec, TrainingFailed]] = field(default_factory=list)


def log_trainings(
    client: Any, experiment: str, night: Night, candidates: Sequence[Candidate], tried: Tried, store: str
) -> None:
    """Log a night's trainings, and its candidates as models; what was logged before is not logged again.

    A member that an earlier night has trained is in that night. What failed is there too, with the reason and the
    epochs that it got to. A night that came to no decision is FAILED; run again, it is completed.
    """
    parents = client.search_runs([experiment], f"tags.night = '{night.id}' and tags.level = 'night'")
    if any(parent.info.status == "FINISHED" for parent in parents):
        return
    store = mask(store).rstrip("/")
    # With the time, since a night that is run by hand may be the second of its day.
    day = f"{night.started_at:%Y-%m-%d %H:%M}"
    decision = {"decision": night.decision or NO_DECISION}
    common = {"night": night.id, **decision, "synthetic": str(night.synthetic).lower(), **origin()}
    if parents:  # of a night that was killed here, or failed
        parent = parents[0]
    else:
        parent = _started(client, experiment, f"night {day}", {**common, "level": "night"}, night.started_at)
    common |= {"level": "member", PARENT: parent.info.run_id}
    sizes = Counter([member.spec.model for member in tried.members] + [spec.model for spec, _ in tried.failures])
    sizes |= {candidate.model: len(candidate.members) + len(candidate.missing) for candidate in candidates}
    for member, belongs in _trained(night, candidates, tried):
        known = client.search_runs([experiment], f"tags.member = '{member.id}'")
        for killed in (run.info.run_id for run in known if run.info.status == "RUNNING"):
            client.delete_run(killed)
        if done := [run for run in known if run.info.status == "FINISHED"]:
            if done[0].data.tags.get("decision") == NO_DECISION:  # of this night, when it had failed
                _set_tags(client, done[0], belongs)
            continue
        name = f"{member.spec.model} {member.spec.member + 1}/{sizes[member.spec.model]} of {day}"
        _log_member(client, experiment, name, common | belongs, member, store)
    below = list(all_pages(client.search_runs, [experiment], f"tags.`{PARENT}` = '{parent.info.run_id}'"))
    for name, why, failure in _failures(night, tried):
        if f"{name} of {day}" not in {run.info.run_name for run in below}:
            tags = {**common, "outcome": FAILED, "cnn": name.partition(",")[0], "mlflow.note.content": why}
            _log_failure(client, experiment, f"{name} of {day}", tags, night.finished_at, failure)
    for run in below:
        _set_tags(client, run, decision)
    for candidate in candidates:
        _log_model(
            client, experiment, parent.info.run_id, f"{candidate.model}-{night.started_at:%Y-%m-%d}", candidate, store
        )
    verdict, status = (night.verdict.value, "FINISHED") if night.decision else (FAILED, "FAILED")
    _set_tags(client, parent, {**decision, "verdict": verdict, "mlflow.note.content": night.sentence})
    # Last: a run that was killed before is not FINISHED, and is completed.
    client.set_terminated(parent.info.run_id, status, ms(night.finished_at))


def _trained(night: Night, candidates: Sequence[Candidate], tried: Tried) -> Iterator[tuple[Member, dict[str, str]]]:
    """Yield each member, with the tags that say what it belongs to."""
    seen = set()
    for candidate in candidates:
        outcome = night.verdict.value if candidate.id == night.challenger else NOT_CHOSEN
        for member in candidate.members:
            seen.add(member.id)
            yield member, {"outcome": outcome, "candidate": candidate.id}
    for member in tried.members:
        if member.id not in seen:
            yield member, {"outcome": TOO_FEW, "candidate": "none"}


def _failures(night: Night, tried: Tried) -> Iterator[tuple[str, str, tuple[TrainSpec, TrainingFailed] | None]]:
    """Yield what failed, why, and the training, where the night knows more of it than that."""
    known = {f"{spec.model}, member {spec.member + 1}": (spec, error) for spec, error in tried.failures}
    for name, why in {**{name: error.message for name, (_, error) in known.items()}, **night.failed_trainings}.items():
        yield name, why, known.get(name)


def _log_member(client: Any, experiment: str, name: str, tags: dict[str, str], member: Member, store: str) -> None:
    """Log one training, in four writes of the database: begun, measured, its cells, ended."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric

    spec = member.spec
    begun = started(member)
    tags = {
        **tags,
        **{"member": member.id, "cnn": spec.model, "device": member.device, "stopped": member.stopped},
        **{f"version.{name}": number for name, number in member.versions.items()},
        "weights": f"{store}/{member.weights_key}",
    }
    run = _started(client, experiment, name, tags, begun).info.run_id
    params: dict[str, Any] = {**_params(spec), "device": member.device}
    # As fitted: smaller than the recipe's when memory ran out.
    params |= {"batch_size": member.batch_size} if member.batch_size else {}
    values = {"seconds": member.seconds, "best_epoch": member.best_epoch, "peak_memory_mb": member.peak_memory_mb}
    values |= {"train_cells": member.train_cells, "train_patients": member.train_patients}
    values |= {"tuning_patients": member.tuning_patients}
    metrics = [Metric(name, float(value), ms(member.created_at), 0) for name, value in values.items()]
    _log_numbers(client, run, metrics + curves(member.history, begun), params)
    cells = Dataset(
        name=f"split {spec.split[:8]}, all but fold {spec.member + 1}",
        digest=spec.split,
        source_type="store",
        source=json.dumps({"uri": f"{store}/{record_key(Split.kind, spec.split)}"}),
        profile=json.dumps({"num_rows": member.train_cells, "patients": member.train_patients}),
    )
    client.log_inputs(run, [DatasetInput(cells, [InputTag("mlflow.data.context", "training")])])
    client.set_terminated(run, end_time=ms(member.created_at))


def _log_failure(
    client: Any,
    experiment: str,
    name: str,
    tags: dict[str, str],
    at: datetime,
    failure: tuple[TrainSpec, TrainingFailed] | None,
) -> None:
    """Log a training that left no model, with the epochs that it got to; ``at``: when, where that is not known."""
    begun = ended = at
    numbers: tuple[list[Any], dict[str, Any]] = [], {}
    if failure is not None:
        spec, error = failure
        ended = error.ended_at or at
        begun = error.started_at or ended - timedelta(seconds=sum(epoch.seconds for epoch in error.epochs))
        numbers = curves(error.epochs, begun), _params(spec)
    run = _started(client, experiment, name, tags, begun).info.run_id
    _log_numbers(client, run, *numbers)
    client.set_terminated(run, "FAILED", ms(ended))


def _params(spec: TrainSpec) -> dict[str, Any]:
    params = {"cnn": spec.model, "member": spec.member + 1, "seed": spec.seed + spec.member}
    params |= {"side": spec.side, "recipe_version": spec.recipe_version}
    return params | {f"recipe.{name}": value for name, value in spec.recipe.items()}


def started(member: Member) -> datetime:
    """Return when the training of a member began."""
    return member.started_at or member.created_at - timedelta(seconds=member.seconds)


def curves(epochs: Sequence[EpochRecord], at: datetime, fields: Collection[str] = tuple(_CURVES)) -> list[Any]:
    """Return what was measured after each epoch of a training that began ``at``.

    Where a record does not say when its epoch ended, the seconds are added up.
    """
    from mlflow.entities import Metric

    points = []
    for epoch in epochs:
        at += timedelta(seconds=epoch.seconds)
        for name in fields:
            if (value := getattr(epoch, name)) is not None:
                points.append(Metric(_CURVES[name], float(value), ms(epoch.ended_at or at), epoch.epoch))
    return points


def _log_numbers(client: Any, run: str, metrics: list[Any], params: dict[str, Any]) -> None:
    from mlflow.entities import Param

    client.log_batch(run, metrics[: MOST_METRICS // 2], [Param(name, str(value)) for name, value in params.items()])
    for begin in range(MOST_METRICS // 2, len(metrics), MOST_METRICS):
        client.log_batch(run, metrics[begin : begin + MOST_METRICS])


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
    made = ms(candidate.created_at)
    found = {name: interval.value for name, interval in candidate.tuning.intervals().items() if interval is not None}
    metrics = [
        Metric(f"{candidate.model}.tuning.{name}", value, made, 0, model_id=model.model_id, run_id=parent)
        for name, value in found.items()
    ]
    client.log_batch(parent, metrics)
    client.finalize_logged_model(model.model_id, "READY")


def _started(client: Any, experiment: str, name: str, tags: dict[str, str], at: datetime) -> Any:
    return client.create_run(experiment, start_time=ms(at), run_name=name, tags=tags)


def _set_tags(client: Any, run: Any, tags: dict[str, str]) -> None:
    for name, value in tags.items():
        if run.data.tags.get(name) != value:
            client.set_tag(run.info.run_id, name, value)
