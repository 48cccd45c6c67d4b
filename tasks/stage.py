"""How a stage becomes a Prefect task: by name, and nothing else.

Prefect's own caching and result storage stay off: our records are what a finished stage leaves behind. No retries
either: the store and the registry retry their own calls, and a stage that failed is run again with the night.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import TaskRunContext

from infra.privacy import redact_exceptions
from tasks.progress import Step, watch

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


def stage(function: Callable[P, R], *, name: str | None = None) -> Task[P, R]:
    """Return ``function`` as a Prefect task; outside a flow call the plain function."""
    # Prefect keeps the text of what ended a task.
    discreet = redact_exceptions()(function)
    return task(name=name or function.__name__, cache_policy=NO_CACHE, persist_result=False)(discreet)


class ProgressOnPages:
    """Shows how far a stage is on Prefect's pages: a progress artifact for every stage that takes longer than 5 s."""

    EVERY_SECONDS = 5.0

    def __init__(self) -> None:
        self._shown: dict[tuple[Any, str], Any] = {}

    def __call__(self, step: Step) -> None:
        """Make or update the artifact. A server that does not answer costs the artifact and nothing else."""
        run = TaskRunContext.get()
        over = step.done >= step.total
        if run is None:
            return
        place = (run.task_run.id, step.doing)
        percent = 100.0 * step.done / max(step.total, 1)
        try:
            if place in self._shown:
                update_progress_artifact(self._shown[place], progress=percent, description=str(step))
            elif not over:
                key = f"{step.doing.replace(' ', '-').lower()}-progress"
                self._shown[place] = create_progress_artifact(progress=percent, key=key, description=str(step))
        except Exception as error:
            log.debug("no progress on Prefect's pages: %s", error)
        if over:
            self._shown.pop(place, None)


watch(ProgressOnPages(), ProgressOnPages.EVERY_SECONDS)
