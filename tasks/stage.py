"""How a stage becomes a Prefect task: by name, and nothing else.

Prefect's own caching and result storage stay off: our records are what a finished stage leaves behind. No retries
either: the store and the registry retry their own calls, and a stage that failed is run again with the night.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from prefect import Task, task
from prefect.cache_policies import NO_CACHE

P = ParamSpec("P")
R = TypeVar("R")


def stage(function: Callable[P, R], *, name: str | None = None) -> Task[P, R]:
    """Return ``function`` as a Prefect task; outside a flow call the plain function."""
    return task(name=name or function.__name__, cache_policy=NO_CACHE, persist_result=False)(function)
