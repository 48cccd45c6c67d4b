"""Whether ``retrain up`` runs on a home folder: there is one at most, and commands use its Prefect server."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.settings.settings import Settings
from validation.errors import UsageError


@contextmanager
def machine_lock(home: Path) -> Iterator[None]:
    """Let there be one ``retrain up`` for a home folder. The kernel lets go of the lock when the process dies.

    Raises:
        UsageError: when there is another.
    """
    home.mkdir(parents=True, exist_ok=True)
    with _lock(home).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"`retrain up` is running on {home} already", "stop it, or use another RETRAIN_HOME"
            ) from None
        yield


def machine_url(settings: Settings) -> str | None:
    """Return the address of the Prefect server of ``retrain up`` on this home folder, if it runs.

    A second server on the same database would get in its way.
    """
    try:
        with _lock(settings.home).open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return settings.up.url
    except OSError:
        pass  # there has never been one
    return None


def _lock(home: Path) -> Path:
    return home / "up.lock"
