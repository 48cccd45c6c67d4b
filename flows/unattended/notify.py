"""New cells start a night: many notices become one run."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from flows.unattended.signals import interrupt_on_signals
from flows.unattended.up import NIGHTLY
from infra.bucket_events import Queue
from infra.environment import prefect_api_url
from infra.prefect_api import FINAL, PrefectServer
from infra.settings.settings import Settings, secret_value
from validation.errors import RetrainError, UsageError

log = logging.getLogger(__name__)

TAG = "notified"


def server_of(settings: Settings) -> PrefectServer:
    """Return the Prefect server that the environment names, else the one of ``retrain up`` on this machine."""
    if (url := prefect_api_url()) is not None:
        return PrefectServer(url)
    return PrefectServer(settings.up.url, auth=secret_value(settings.up.auth))


def notify(server: PrefectServer, settings: Settings, *, now: datetime | None = None) -> dict[str, Any]:
    """Return the run of the night that will see the cells that are there now: the scheduled one, or a new one.

    A new one begins ``events.debounce_minutes`` from now, and sees all cells that arrive until then. Two notices at the
    same moment become one run by their idempotency key, the time window in which they fall.
    """
    now = now or datetime.now(UTC)
    waiting = server.runs(deployment=NIGHTLY, states=["SCHEDULED"], tags=[TAG])
    if waiting:
        return waiting[-1]
    wait = timedelta(minutes=settings.events.debounce_minutes)
    window = int(now.timestamp() // wait.total_seconds())
    for attempt in range(100):
        run = server.create_run(NIGHTLY, key=f"notified-{window}-{attempt}", at=now + wait, tags=[TAG])
        # One that was cancelled by hand, or began early, did not see these cells.
        if run["state_type"] not in FINAL:
            return run
    raise RetrainError("a hundred notified nights have ended in one time window", "see Prefect's page")


def listen(server: PrefectServer, settings: Settings) -> None:
    """Notify whenever the queue reports new cells, until interrupted."""
    if not settings.events.queue:
        raise UsageError("no queue is set", "set RETRAIN_EVENTS__QUEUE to the address of an SQS queue")
    queue = Queue(settings.events)
    interrupt_on_signals()
    log.info("listening to %s", settings.events.queue)
    with suppress(KeyboardInterrupt):
        while True:
            try:
                relay(queue, server, settings)
            except RetrainError as error:
                # The queue delivers again what was not deleted.
                log.error("%s", error)
                time.sleep(30)


def relay(queue: Queue, server: PrefectServer, settings: Settings, *, wait_seconds: int = 20) -> dict[str, Any] | None:
    """Receive messages, notify if they report new cells, and only then delete them; return the run, if any."""
    batch = queue.receive(wait_seconds)
    run = None
    if batch.new_cells:
        run = notify(server, settings)
        log.info("%d new cells: night %s at %s", batch.new_cells, run["name"], run["expected_start_time"])
    queue.delete(batch)
    return run
