"""An engine that spreads the data stages over several machines: Dask, through Prefect's task runner for it.

Each chunk of work is a call of a pure function in a module that the workers have too, with a small result. The engine
is an extra (``pip install malaria-retraining[dask]``), imported only where it is set.
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
# How long an autoscaling cluster may take for its first worker.
WORKER_SECONDS = 300.0
# Chunks per worker under way: one running, one waiting, so that results never fill the memory.
AHEAD = 2


class Engine:
    """The workers of a cluster."""

    def __init__(self, client: Any, workers: int) -> None:
        self._client = client
        self._ahead = AHEAD * workers

    def map(self, function: Callable[..., Any], chunks: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Yield ``function(*chunk)`` for each chunk, as they are completed.

        A chunk whose worker dies goes to another one; it may run twice, since functions are pure.

        Raises:
            RetrainError: raised by the function; or when a chunk kills one worker after the other.
            Unreachable: when the engine is gone.
        """
        from distributed import as_completed

        futures = (self._client.submit(function, *chunk, pure=False) for chunk in chunks)
        running = as_completed(islice(futures, self._ahead), loop=self._client.loop)
        for future in running:
            yield self._result(future)
            running.update(islice(futures, 1))

    @staticmethod
    def _result(future: Any) -> Any:
        from distributed import CancelledError, KilledWorker

        try:
            result = future.result()
        except KilledWorker as error:
            raise RetrainError(
                f"a chunk of work ended one worker of the engine after the other: {error}",
                "do the workers have enough memory? RETRAIN_ENGINE=local works without them",
            ) from None
        except (CancelledError, OSError, TimeoutError) as error:
            raise _gone(error) from error
        future.release()
        return result


@contextmanager
def open_engine(name: str) -> Iterator[Engine]:
    """Yield the engine that the setting ``engine`` names.

    ``dask`` is a cluster on this machine's loopback that ends with the ``with``; ``dask+tcp://HOST:PORT`` is a
    scheduler's address.

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
    # It logs every connection.
    logging.getLogger("distributed").setLevel(logging.WARNING)
    address = name.removeprefix(f"{DASK}+") if name != DASK else None
    # Dask's web page: loopback only, on any free port, since two nights may run side by side.
    own = {"n_workers": len(os.sched_getaffinity(0)), "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    runner = DaskTaskRunner(address=address) if address else DaskTaskRunner(cluster_kwargs=own)
    # A local cluster limits its workers to one thread each (OMP_NUM_THREADS and the like) in this process's
    # environment: a later training would use one core, and give another model than a night without the engine.
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
        "is the scheduler running, does it have workers? see RETRAIN_ENGINE; local works without it",
    )
