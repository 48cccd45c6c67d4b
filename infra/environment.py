"""The folder of this code, and this process's environment variables: those of other systems that are read here, and
restoring those that a library changes (every child process inherits them).
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

# The folder that contains the four packages; in a checkout, its root.
CODE_ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def environment_kept(names: Collection[str] | None = None) -> Iterator[None]:
    """Restore environment variables afterwards: those of ``names``, or all."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in names if names is not None else {*os.environ, *before}:
            if name in before:
                os.environ[name] = before[name]
            else:
                os.environ.pop(name, None)


def prefect_api_url() -> str | None:
    """Return the Prefect server that the environment names, if any; this is Prefect's own setting."""
    return os.environ.get("PREFECT_API_URL") or None


def prefect_page_url() -> str | None:
    """Return the address of that server's pages: Prefect's own PREFECT_UI_URL, or the API's without ``/api``."""
    page = os.environ.get("PREFECT_UI_URL") or (prefect_api_url() or "").rstrip("/").removesuffix("/api")
    return page.rstrip("/") or None


def prefect_api_auth() -> str | None:
    """Return ``user:password`` for a Prefect server that requires them, if the environment names them."""
    return os.environ.get("PREFECT_API_AUTH_STRING") or None


def visible_gpus() -> str | None:
    """Return CUDA's list of the GPUs that this process may use; None when it is not set."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")
