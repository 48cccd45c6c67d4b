"""The training flow: one member of a CNN, on any worker of its pool, usually ``gpu``; how a night starts and awaits it.

Only names travel: the worker reads the split from the store, builds the pack on its own disk, and stores the member.
The night starts all its trainings at once; the pool's concurrency limit, the number of GPUs, decides how many run.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, cast

from prefect import flow
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment

from flows.opening import opened
from infra.environment import prefect_api_url
from infra.prefect_api import FINAL, PrefectServer
from infra.processes.gpus import own_gpu
from tasks.context import Context
from tasks.pack import pack_task
from tasks.pruning.prune import tidy_here
from tasks.train import describe, train_task
from tasks.training.places import at_once, share_of_cores
from tasks.training.specs import find_member
from validation.errors import RetrainError, TrainingFailed
from validation.records import Member, Pack, Split, TrainSpec

log = logging.getLogger(__name__)

POLL_SECONDS = 2.0
# A failed training is retried on the next night; the same training may fail this many times.
MOST_ATTEMPTS = 50
TRIES = 2


@flow(name="train", validate_parameters=True)
def train_flow(spec: TrainSpec) -> str:
    """Train the member that ``spec`` describes; return its id."""
    with opened() as context:
        settings = context.settings
        split = context.records.load(Split, spec.split)
        with own_gpu(settings.home / "gpus") as own:
            if own:
                log.info("GPU %s is reserved for %s", *own.values(), describe(spec))
            member = train_task(context, spec, split, pack_task(context, split), own)
        tidy_here(context)
    return member.id


@contextmanager
def trainings(
    context: Context, specs: list[TrainSpec], split: Split, pack: Pack
) -> Iterator[dict[tuple[str, int], Future[Member]]]:
    """Start trainings, several at once; yield a future for each member, by model and number.

    On their deployments all of them; here as many as have room (``at_once``). Where that is one there are none.

    A night that is stopped stops waiting. Trainings on deployments continue, and the next night finds them; those of
    this process end.
    """
    settings, stop = context.settings.training, threading.Event()
    remote = settings.where == "deployment"
    count = len(specs) if remote else min(len(specs), at_once(settings.at_once))
    if count <= 1 and not remote:
        specs = []

    def one(spec: TrainSpec) -> Member:
        if remote:
            return train_remotely(context, spec, stop)
        with own_gpu(context.settings.home / "gpus") as own:
            return train_task(context, spec, split, pack, own or share_of_cores(count), stop)

    with ThreadPoolExecutor(max(1, count), thread_name_prefix="training") as pool:
        try:
            # With the flow run's context in each thread, Prefect shows the trainings under the night.
            yield {(spec.model, spec.member): pool.submit(contextvars.copy_context().run, one, spec) for spec in specs}
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=not remote)


def train_remotely(context: Context, spec: TrainSpec, stop: threading.Event | None = None) -> Member:
    """Run a training on its deployment, or wait for the run that a killed night has started.

    Raises:
        TrainingFailed: when it failed, or did not end in time and was cancelled.
    """
    id_, stored = find_member(context, spec)
    if stored is not None:
        return stored
    server = PrefectServer(prefect_api_url() or _url_of_this_run())
    for _ in range(TRIES):
        run = _running_or_new(server, spec, id_)
        state = _await(server, run, context.settings.training.deployment_timeout_seconds, stop or threading.Event())
        if state["type"] != "CRASHED":
            break  # only the loss of a machine is worth a second try
        log.warning("run %s crashed: %s", run["name"], state["message"])
    if state["type"] != "COMPLETED":
        raise TrainingFailed(
            f"the run that trains {describe(spec)}, is {state['name']}: {state['message'] or 'no reason is known'}",
            f"see run {run['name']} on Prefect's page",
        )
    return context.records.load(Member, id_)


def _running_or_new(server: PrefectServer, spec: TrainSpec, id_: str) -> dict[str, Any]:
    """Return the live run of this training, or start a new attempt.

    The idempotency key names training and attempt. Without the attempt Prefect would return the failed run for ever.
    """
    name = f"train/{spec.model}"
    for attempt in range(1, MOST_ATTEMPTS + 1):
        key = f"train-{id_}-{attempt}"
        runs = server.runs(key=key)
        if runs and runs[0]["state_type"] not in FINAL:
            log.info("%s is already running: run %s", name, runs[0]["name"])
            return runs[0]
        if not runs:
            log.info("waiting for a worker to train %s", describe(spec))
            parameters = {"spec": spec.model_dump(mode="json")}
            started = run_deployment(
                name,
                flow_run_name=f"train {spec.model} {spec.member + 1}",
                parameters=parameters,
                timeout=0,
                idempotency_key=key,
                as_subflow=True,
            )
            return server.run(str(cast(FlowRun, started).id))
    raise TrainingFailed(
        f"{name} has failed {MOST_ATTEMPTS} times with the same data", "see its runs on Prefect's page"
    )


def _await(server: PrefectServer, run: dict[str, Any], seconds: float, stop: threading.Event) -> dict[str, Any]:
    """Wait for a run to end and return its state; cancel it when the time is up."""
    until = time.monotonic() + seconds
    while not stop.is_set():
        try:
            run = server.run(run["id"])
        except RetrainError as error:
            # A server that restarts costs one unanswered request.
            log.warning("%s", error)
        if run["state_type"] in FINAL:
            return dict(run["state"])
        if time.monotonic() > until:
            server.set_state(run["id"], "CANCELLING", "Cancelling", "the night stopped waiting")
            raise TrainingFailed(
                f"the run {run['name']} did not end within {seconds:g} s and was cancelled",
                "see RETRAIN_TRAINING__DEPLOYMENT_TIMEOUT_SECONDS; is there a worker of the pool gpu?",
            )
        stop.wait(min(POLL_SECONDS, seconds))
    raise TrainingFailed(f"the night was stopped while it waited for {run['name']}", "run the night again")


def _url_of_this_run() -> str:
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    if not url:
        raise TrainingFailed(
            "trainings are to run on workers, and there is no Prefect server", "set PREFECT_API_URL, or `retrain up`"
        )
    return url
