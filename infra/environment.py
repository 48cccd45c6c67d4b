"""Where this code lies, and this process's environment variables: those of other systems that we read, and putting back
what others changed (everything that this process starts inherits them).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

# The folder that holds the four packages; of a checkout, its root.
CODE_ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def environment_kept(names: Collection[str] | None = None) -> Iterator[None]:
    """Put back the environment variables that are changed within: those of ``names``, or all."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(names if names is not None else os.environ.keys() | before.keys()):
            if name in before:
                os.environ[name] = before[name]
            else:
                os.environ.pop(name, None)


def prefect_api_url() -> str | None:
    """Return the Prefect server that the environment names, if any; Prefect's own setting, not one of ours."""
    return os.environ.get("PREFECT_API_URL") or None


def prefect_api_auth() -> str | None:
    """Return ``user:password`` for a Prefect server that asks for them, if the environment names them."""
    return os.environ.get("PREFECT_API_AUTH_STRING") or None


def visible_gpus() -> str | None:
    """Return which GPUs this process may use, as CUDA is told; None when nothing is said."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")
