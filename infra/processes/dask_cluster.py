"""An engine that spreads the data stages over several machines: Dask, by Prefect's own task runner for it.

What is spread are chunks of work, each a pure function of a module that the workers have too; what comes back is small.
The engine is an extra (``pip install malaria-retraining[dask]``), imported only where it is set.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

from infra.environment import environment_kept
from validation.errors import RetrainError, SettingsError, Unreachable

log = logging.getLogger(__name__)

LOCAL = "local"
DASK = "dask"
# How long a cluster that scales by itself may take for its first worker.
WORKER_SECONDS = 300.0
# Chunks under way for each worker: one it works at, one that waits, so that results never fill a memory.
AHEAD = 2


class Engine:
    """Workers that take chunks."""

    def __init__(self, client: Any, workers: int) -> None:
        self._client = client
        self._ahead = AHEAD * workers

    def map(self, function: Callable[..., Any], chunks: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Yield ``function(*chunk)`` for each chunk, in the order in which they are done.

        A chunk whose worker dies goes to another one; functions are pure, so it may be done twice.

        Raises:
            RetrainError: the function's own; or when a chunk ends one worker after the other.
            Unreachable: when the engine is gone.
        """
        from distributed import as_completed

        waiting = iter(chunks)
        first = [self._send(function, chunk) for chunk in islice(waiting, self._ahead)]
        flying = as_completed(first, loop=self._client.loop)
        for future in flying:
            yield self._result(future)
            for chunk in islice(waiting, 1):
                flying.add(self._send(function, chunk))

    def _send(self, function: Callable[..., Any], chunk: tuple[Any, ...]) -> Any:
        return self._client.submit(function, *chunk, pure=False)

    @staticmethod
    def _result(future: Any) -> Any:
        from distributed import CancelledError, KilledWorker

        try:
            result = future.result()
        except KilledWorker as error:
            raise RetrainError(
                f"a chunk of work ended one worker of the engine after the other: {error}",
                "is there memory enough on the workers? RETRAIN_ENGINE=local works without them",
            ) from None
        except (CancelledError, OSError, TimeoutError) as error:
            raise _gone(error) from error
        future.release()
        return result


@contextmanager
def open_engine(name: str) -> Iterator[Engine]:
    """Yield the engine that the setting ``engine`` names: ``dask``, or ``dask+tcp://HOST:PORT``, a scheduler's address.

    ``dask`` alone is a cluster of this machine, on loopback, that ends with the ``with``.

    Raises:
        SettingsError: when the extra is not installed.
        Unreachable: when no scheduler answers there, or it has no worker.
    """
    try:
        from prefect_dask import DaskTaskRunner
    except ImportError as error:
        raise SettingsError(
            f"the engine {name!r} needs packages that are not installed: {error}",
            "install the extra: pip install 'malaria-retraining[dask]'; or leave RETRAIN_ENGINE at local",
        ) from None
    # It tells of every connection.
    logging.getLogger("distributed").setLevel(logging.WARNING)
    address = name.removeprefix(f"{DASK}+") if name != DASK else None
    # Dask's web page is for this machine alone, on any free port: two nights may run side by side.
    own = {"n_workers": len(os.sched_getaffinity(0)), "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    runner = DaskTaskRunner(address=address) if address else DaskTaskRunner(cluster_kwargs=own)
    # A cluster of this machine tells its workers to compute with one thread each (OMP_NUM_THREADS and the like), and
    # does so in our own environment: a training that is started later would have one core of many, and make another
    # model than a night without the engine.
    with environment_kept(), ExitStack() as opened:
        try:
            client = opened.enter_context(runner).client
            client.wait_for_workers(1, timeout=WORKER_SECONDS)
        except (OSError, TimeoutError) as error:
            raise _gone(error) from error
        workers = len(client.scheduler_info(n_workers=-1)["workers"])
        log.info("the engine %s has %d workers", name, workers)
        yield Engine(client, workers)


def _gone(error: BaseException) -> Unreachable:
    return Unreachable(
        f"the engine cannot be used: {error or type(error).__name__}",
        "is the scheduler there, does it have workers? see RETRAIN_ENGINE; local works without it",
    )
