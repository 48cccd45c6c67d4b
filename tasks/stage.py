"""How a stage becomes a Prefect task: by name only.

Prefect's caching and result storage stay off: a finished stage leaves its records. No retries either: the store and the
registry retry their own calls, and a stage that failed is run again with the night.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import TaskRunContext
from prefect.runtime import task_run

from infra.privacy import redact_exceptions
from tasks.progress import Step, watch

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


def stage(
    function: Callable[P, R], *, name: str | None = None, run_name: Callable[[dict[str, Any]], str] | None = None
) -> Task[P, R]:
    """Return ``function`` as a Prefect task, its runs named by their arguments; outside a flow call the function."""
    # Prefect stores the text of the exception that ended a task.
    redacted = redact_exceptions()(function)
    called = (lambda: run_name(task_run.parameters)) if run_name else None
    return task(name=name or function.__name__, task_run_name=called, cache_policy=NO_CACHE, persist_result=False)(
        redacted
    )


class ProgressOnPages:
    """Shows progress on Prefect's pages: a progress artifact for every stage that takes longer than 5 s."""

    EVERY_SECONDS = 5.0

    def __init__(self) -> None:
        self._shown: dict[tuple[Any, str], Any] = {}

    def __call__(self, step: Step) -> None:
        """Create or update the artifact. A server that does not answer costs only the artifact."""
        if (run := TaskRunContext.get()) is None:
            return
        stage_of_run, finished = (run.task_run.id, step.doing), step.done >= step.total
        shown: dict[str, Any] = {"progress": 100.0 * step.done / max(step.total, 1), "description": str(step)}
        try:
            if stage_of_run in self._shown:
                update_progress_artifact(self._shown[stage_of_run], **shown)
            elif not finished:
                key = re.sub("[^a-z0-9]+", "-", f"{step.doing} progress".lower())
                self._shown[stage_of_run] = create_progress_artifact(key=key, **shown)
        except Exception as error:
            log.debug("no progress on Prefect's pages: %s", error)
        if finished:
            self._shown.pop(stage_of_run, None)


watch(ProgressOnPages(), ProgressOnPages.EVERY_SECONDS)
