"""The training flow: one CNN, on whichever worker takes it, for instance one of the pool ``gpu``.

What travels is names: the worker reads the split from the store, makes the pack on its own disk, and leaves the
candidate in the store.
"""

from __future__ import annotations

import logging
from typing import Any, cast

from prefect import flow
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment

from infra.runtime import prepare_environment
from infra.settings import load_settings
from tasks.context import Context
from tasks.pack import pack_task
from tasks.train import train_task
from validation.digest import digest
from validation.errors import TrainingFailed
from validation.records import Candidate, Pack, Split, TrainSpec

log = logging.getLogger(__name__)


@flow(name="train", validate_parameters=True)
def train_flow(spec: dict[str, Any]) -> str:
    """Train the CNN that ``spec`` (validation.records.TrainSpec as JSON) describes; return the candidate's id."""
    wanted = TrainSpec.model_validate(spec)
    settings = load_settings()
    prepare_environment(settings)
    context = Context.open(settings)
    split = context.records.load(Split, wanted.split)
    return train_task(context, wanted, split, pack_task(context, split)).id


def train_elsewhere(context: Context, spec: TrainSpec, split: Split, pack: Pack) -> Candidate:
    """Send a training to its deployment and wait for it.

    Raises:
        TrainingFailed: when it failed, or did not end in time (it may go on: the next night finds what it leaves).
    """
    del split, pack
    id_ = digest(spec.model_dump(mode="json"))
    if (stored := context.records.find(Candidate, id_)) is not None:
        return stored
    name = f"train/{spec.model}"
    log.info("waiting for a worker to run %s", name)
    # No idempotency key: Prefect would return a failed run for ever; a finished training is found by its record.
    run = cast(
        FlowRun,
        run_deployment(
            name=name,
            parameters={"spec": spec.model_dump(mode="json")},
            timeout=context.settings.training.deployment_timeout_seconds,
            as_subflow=True,
        ),
    )
    if run.state is None or not run.state.is_completed():
        state = run.state.name if run.state else "unknown"
        raise TrainingFailed(f"the run of {name} is {state}", f"see run {run.name} on Prefect's page")
    return context.records.load(Candidate, id_)
