"""How a stage becomes a Prefect task: by name only.

Prefect's caching and result storage stay off: a finished stage leaves its records. No retries either: the store and the
registry retry their own calls, and a stage that failed is run again with the night.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

from prefect import Task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.assets import Asset
from prefect.cache_policies import NO_CACHE
from prefect.context import AssetContext, TaskRunContext
from prefect.runtime import task_run
from prefect.tasks import MaterializingTask

from infra.privacy import redact_exceptions
from tasks.progress import Step, watch

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


def stage(
    function: Callable[P, R],
    *,
    name: str | None = None,
    run_name: Callable[[dict[str, Any]], str] | None = None,
    makes: str = "",
    each: str = "",
    of: Sequence[str] = (),
) -> Task[P, R]:
    """Return ``function`` as a Prefect task, its runs named by their arguments; outside a flow call the function.

    ``makes``: the asset that it materializes, ``of``: those that it is made of (infra/store/keys.py). With ``each``
    there is one for each value of that field of its result, ``makes`` and the value.
    """
    # Prefect stores the text of the exception that ended a task.
    redacted = redact_exceptions()(_described(function, each) if makes else function)
    called = (lambda: run_name(task_run.parameters)) if run_name else None
    options: dict[str, Any] = {"name": name or function.__name__, "task_run_name": called}
    options |= {"cache_policy": NO_CACHE, "persist_result": False}
    if not makes:
        return Task(redacted, **options)
    # What Prefect's decorator @materialize makes.
    return MaterializingTask(redacted, assets=[makes], asset_deps=list(of), materialized_by="retrain", **options)


def _described(function: Callable[P, R], each: str) -> Callable[P, R]:
    """Return ``function`` with the record that it returns named in the event of the asset that it materializes.

    Prefect infers what an asset is made of from arguments that share a part with earlier results, such as the name of a
    split: one candidate would be made of the other. What is known is said instead (``of``).
    """

    @functools.wraps(function)
    def described(*args: P.args, **kwargs: P.kwargs) -> R:
        if (context := AssetContext.get()) is not None:
            context.upstream_assets.clear()
        made = function(*args, **kwargs)
        if context is not None:
            shown = {name: str(getattr(made, name)) for name in ("id", "version", "created_at") if hasattr(made, name)}
            if each:
                named = {Asset(key=f"{asset.key}{getattr(made, each)}") for asset in context.downstream_assets}
                context.downstream_assets.clear()
                context.downstream_assets.update(named)
            for asset in context.downstream_assets:
                asset.add_metadata(shown or {"made": str(made)})
        return made

    return described


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
