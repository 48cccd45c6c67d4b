"""Whether ``retrain up`` runs on a home folder: at most one does, and commands use its Prefect server."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.local.files import acquire_lock
from infra.settings.settings import Settings
from validation.errors import UsageError

LOCK = "up.lock"


@contextmanager
def machine_lock(home: Path) -> Iterator[None]:
    """Lock a home folder for ``retrain up``.

    Raises:
        UsageError: when another ``retrain up`` runs on it.
    """
    lock = acquire_lock(home / LOCK)
    if lock is None:
        raise UsageError(f"`retrain up` is running on {home} already", "stop it, or use another RETRAIN_HOME")
    with lock:
        yield


def machine_url(settings: Settings) -> str | None:
    """Return the address of the Prefect server of ``retrain up`` on this home folder, if it runs.

    A second server on the same database would get in its way.
    """
    try:
        # Shared, unlike any lock of filelock's: two commands that look at once must not see each other.
        with (settings.home / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return settings.up.url
    except OSError:
        pass  # `retrain up` has never run here
    return None
