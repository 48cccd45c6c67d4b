"""The command line in processes that are forked from one that has imported all that a night takes.

What is slow, importing Prefect, MLflow and Great Expectations, happens once. What is forked has an environment, pipes
and a number of its own, is told apart from a started one by nothing that it does, and can be killed like it.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from tests import ROOT

# What a night imports on its way, for all that fork nights. Not onnxruntime: it starts a thread when it is imported,
# for which a forked process would wait at its end.
IMPORTED = (
    *("flows.retrain", "flows.cli.main", "prefect.flow_engine", "prefect.task_engine"),
    *("great_expectations.expectations", "great_expectations.render.view"),
    *("matplotlib.figure", "matplotlib.backends.backend_svg", "matplotlib.font_manager", "sklearn.metrics"),
    *("mlflow.onnx", "mlflow.pyfunc", "mlflow.store.tracking.sqlalchemy_store"),
    *("mlflow.store.model_registry.sqlalchemy_store", "obstore", "pyarrow.dataset", "pyarrow.parquet", "scipy.stats"),
)


class Forked:
    """One run of the command line: what ``subprocess.Popen`` would give, as far as tests ask for it."""

    def __init__(self, forks: Forks, pid: int, stdout: IO[str], stderr: IO[str]) -> None:
        self.pid = pid
        self.stdout, self.stderr = stdout, stderr
        self.returncode: int | None = None
        self._forks = forks

    def kill(self) -> None:
        """Kill it with SIGKILL. Until it is asked how it ended it stays its parent's to bury: the number is its own."""
        os.kill(self.pid, signal.SIGKILL)

    def finish(self) -> tuple[str, str]:
        """Wait for the end and return what it still wrote: not more than a pipe holds, 64 KiB, on standard output."""
        with self.stdout, self.stderr:
            told = self.stderr.read()
            shown = self.stdout.read()
        self.returncode = int(self._forks.ask({"wait": self.pid}))
        return shown, told


class Forks:
    """The process that is forked from: ``python -m tests.forked``."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs, log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forked", str(theirs.fileno())],
                cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                pass_fds=[theirs.fileno()],
            )  # fmt: skip
        self._answers = self._socket.makefile("r")

    def start(self, arguments: Sequence[str], environment: dict[str, str]) -> Forked:
        """Fork a process that runs the command line with these arguments, and nothing of our environment."""
        (out, to_out), (err, to_err) = os.pipe(), os.pipe()
        try:
            pid = self.ask({"run": list(arguments), "environment": environment}, to_out, to_err)
        finally:
            os.close(to_out)
            os.close(to_err)
        return Forked(self, int(pid), os.fdopen(out), os.fdopen(err))

    def ask(self, request: dict[str, Any], *files: int) -> Any:
        socket.send_fds(self._socket, [json.dumps(request).encode() + b"\n"], files)
        answer = self._answers.readline()
        assert answer, "the process that is forked from has ended: see its log"
        return json.loads(answer)

    def close(self) -> None:
        """End it, and with it whatever still runs of what it forked."""
        self._answers.close()
        self._socket.close()
        self._process.wait()


def _serve(connection: socket.socket) -> None:
    """Fork and wait as asked, until nobody is there to ask; then end what still runs. A forked process returns."""
    running: set[int] = set()
    while (asked := _receive(connection)) is not None:
        request, files = asked
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            running.discard(request["wait"])
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if not answer:
                _become(request, files, connection)
                return
            running.add(answer)
            for file in files:
                os.close(file)
        connection.sendall(json.dumps(answer).encode() + b"\n")
    for pid in running:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    raise SystemExit


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    data, files = b"", list[int]()
    while not data.endswith(b"\n"):
        part, more, _, _ = socket.recv_fds(connection, 1 << 16, 2)
        if not part:
            return None
        data, files = data + part, files + more
    return json.loads(data), files


def _become(request: dict[str, Any], files: list[int], connection: socket.socket) -> None:
    """Be the process that was asked for."""
    connection.close()
    for number, file in enumerate(files, start=1):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["retrain", *request["run"]]


def _import_all() -> None:
    """Import what a night imports, and in its order: Prefect reads its surroundings when it is imported."""
    from infra.runtime import prepare_environment
    from infra.settings.settings import load_settings

    prepare_environment(load_settings())
    for name in IMPORTED:
        importlib.import_module(name)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as asking:
        _import_all()
        _serve(asking)
    from flows.cli.main import main

    main()
