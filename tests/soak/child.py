"""One act of a soak in a forked process: a night, an answer, a rollback, or a look at how things stand.

Forked from a process that has loaded everything and opened nothing, so that an act costs what it does and no imports.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.forked import IMPORTED
from validation.errors import RetrainError, StoreUnreachable

# Its acts do not end as processes do, which would wait for onnxruntime's thread.
LOADED = (*IMPORTED, "onnxruntime", "tasks.models.fastai.cnn", "tasks.models.keras.cnn")


class Ended:
    """How an act ended: its answer, or its error; and what it cost."""

    def __init__(self, answer: Any, seconds: float, usage: resource.struct_rusage) -> None:
        self.answer, self.seconds = answer, seconds
        self.rss_mb, self.cpu = usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime

    @property
    def error(self) -> str | None:
        """The name of the error that it ended with; ``killed`` when it was."""
        return self.answer.get("error") if isinstance(self.answer, dict) else None


def act(
    function: Callable[..., Any],
    *arguments: Any,
    environment: dict[str, str],
    log: Path,
    kill_after: float | None = None,
) -> Ended:
    """Run a function in a forked process with a changed environment; kill it after some seconds if so asked."""
    reads, writes = os.pipe()
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.close(reads)
        _run(function, arguments, environment, log, writes)
    os.close(writes)
    timer = threading.Timer(kill_after or 1e6, os.kill, (pid, signal.SIGKILL))
    if kill_after is not None:
        timer.start()
    with os.fdopen(reads, "rb") as pipe:
        said = pipe.read()
    _, status, usage = os.wait4(pid, 0)
    timer.cancel()
    if timer.is_alive():
        timer.join()
    killed = os.WIFSIGNALED(status)
    answer = {"error": "killed"} if killed or not said else json.loads(said)
    return Ended(answer, time.monotonic() - started, usage)


def _run(
    function: Callable[..., Any], arguments: tuple[Any, ...], environment: dict[str, str], log: Path, pipe: int
) -> None:
    """In the child; never returns."""
    try:
        with log.open("a", buffering=1) as told:
            os.environ.update(environment)
            os.dup2(told.fileno(), 1)
            os.dup2(told.fileno(), 2)
            logging.basicConfig(stream=told, level=logging.INFO, format="%(asctime)s %(message)s", force=True)
            try:
                answer = function(*arguments)
            except RetrainError as error:
                answer = {"error": type(error).__name__, "message": error.message}
                logging.getLogger().error("%s: %s", type(error).__name__, error)
            except BaseException as error:
                answer = {"error": f"unexpected {type(error).__name__}", "message": traceback.format_exc()[-1500:]}
                logging.getLogger().exception("unexpected")
        os.write(pipe, json.dumps(answer, default=str).encode())
    finally:
        os._exit(0)


def stages_as_functions() -> None:
    """Let the flow's stages be plain functions; the few nights by the command line have a Prefect server."""
    import pytest

    from tests.stages import plain_stages

    patch = pytest.MonkeyPatch()
    plain_stages(patch)
    patch.setattr("flows.retrain.emit_night_events", lambda *_: None)


def load_everything() -> None:
    """Import what acts need, so that each finds it loaded; nothing is opened and no thread is started."""
    for name in LOADED:
        importlib.import_module(name)


def night(store_fails_at: int = 0) -> dict[str, Any]:
    """The flow function of a night: its lock, all stages, its record, and the pruning at its end."""
    from flows import retrain

    if store_fails_at:
        break_store(store_fails_at)
    found: dict[str, Any] = retrain.retrain.fn()
    return found


def break_store(at: int) -> None:
    """Let the store be away from its ``at``-th call on."""
    from infra.store.folder import FolderStore

    calls = iter(range(1, sys.maxsize))
    for name in ("fetch", "put", "exists", "create"):
        sound = getattr(FolderStore, name)

        def failing(self: FolderStore, *arguments: Any, sound: Any = sound) -> Any:
            if next(calls) >= at:
                raise StoreUnreachable(f"the store {self.uri} is away", "it is a fault of the soak")
            return sound(self, *arguments)

        setattr(FolderStore, name, failing)
