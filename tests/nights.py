"""Whole nights in real processes, cheaply: one program imports all that a night needs and forks a process for each.

As a program it reads requests from standard input, one JSON object a line: ``start`` forks a command of the command
line with an environment and a fault of its own, ``wait`` waits for its end. The fault is caused at a moment that is
counted, not timed: the n-th time that the process is about to write a file, start a process or talk to a server.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.store.folder import FolderStore
from tests import ROOT
from tests.builders import plain_cells
from tests.fleet import fake_environment
from tests.forked import IMPORTED

# Each is a step towards the outside world: what a kill may fall between.
_STEPS = ("os.rename", "os.link", "os.mkdir", "os.truncate", "subprocess.Popen", "socket.connect", "http.client.send")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Fault:
    """What happens to a night: at its ``at``-th moment the processes ``kill`` end (by default itself).

    ``full``: these find their disk full then, and none ends. ``patience``: seconds that a training may take beyond its
    deadline.
    """

    at: int = 0
    kill: tuple[int, ...] = ()
    full: tuple[int, ...] = ()
    patience: float = 300.0


@dataclass
class Told:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str
    moments: int

    @property
    def night(self) -> dict[str, Any]:
        """The record that a night ended with."""
        assert self.code in (0, 3), self.err
        night: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return night


class Nights:
    """The program below, running."""

    def __init__(self, folder: Path, empty_registry: Path, **environment: str) -> None:
        self.folder = folder
        self._empty = empty_registry
        self._count = 0
        surroundings = fake_environment(folder, folder / "no-home", **environment)
        surroundings |= {"PREFECT_HOME": str(folder / "prefect"), "OMP_NUM_THREADS": "1"}
        # Its list of fonts takes a second to make.
        surroundings |= {"MPLCONFIGDIR": str(folder / "matplotlib")}
        surroundings |= {"RETRAIN_INHERIT": "PREFECT_HOME,OMP_NUM_THREADS,MPLCONFIGDIR"}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.nights", str(empty_registry)],
            cwd=ROOT, env=surroundings, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def home(self, name: str, *, patients: int = 30) -> Path:
        """Make a machine: a home folder with a registry, and a store with cells."""
        home = self.folder / name
        home.mkdir()
        shutil.copy(self._empty, home / "mlflow.db")
        bring(home, patients)
        return home

    def start(self, home: Path, *arguments: str, fault: Fault | None = None, **environment: str) -> tuple[int, Path]:
        """Start a command on a machine; return its process and where its words go."""
        self._count += 1
        words = self.folder / f"told-{self._count}"
        words.mkdir()
        request = {
            "do": "start",
            "arguments": arguments,
            "environment": {"RETRAIN_HOME": str(home), **environment},
            "fault": (fault or Fault()).__dict__,
            "words": str(words),
        }
        return int(self._ask(request)), words

    def wait(self, started: tuple[int, Path]) -> Told:
        """Wait for the end of a command."""
        pid, words = started
        status = self._ask({"do": "wait", "pid": pid})
        moments = words / "moments"
        return Told(
            os.waitstatus_to_exitcode(status),
            (words / "out").read_text(),
            (words / "err").read_text(),
            int(moments.read_text()) if moments.exists() else 0,
        )

    def run(self, home: Path, *arguments: str, fault: Fault | None = None, **environment: str) -> Told:
        """Run a command on a machine, by default a night."""
        return self.wait(self.start(home, *(arguments or ("run", "--json")), fault=fault, **environment))

    def recipe(self, model: str, /, **recipe: Any) -> dict[str, Any]:
        """Return the setting by which a fake CNN does something else than to end well."""
        given = {"model": str(self.folder / f"{model}.onnx"), **recipe}
        return {f"RETRAIN_TRAINING__{model.upper()}": json.dumps(given)}

    def close(self) -> None:
        """End the program."""
        with self._process as process:
            assert process.stdin
            process.stdin.close()
            process.wait(timeout=60)

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the program that forks nights has ended"
        return json.loads(line)


def bring(home: Path, patients: int, *, first: int = 1) -> None:
    """Bring cells of some patients into a machine's store."""
    store = FolderStore(home / "store")
    for key, data in plain_cells(patients, 4, first=first, seed=first).items():
        store.put(key, data)


def _fork(request: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        words = Path(request["words"])
        for number, name in enumerate(("out", "err"), start=1):
            os.dup2(os.open(words / name, os.O_WRONLY | os.O_CREAT), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(request["environment"])
        moments = _arm(request["fault"])
        try:
            code = _command(request["arguments"])
        finally:
            (words / "moments").write_text(str(moments[0]))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _command(arguments: list[str]) -> int:
    from prefect.context import refresh_global_settings_context

    from flows.cli.main import main

    refresh_global_settings_context()  # Prefect read its settings when it was imported, which is once for all nights
    sys.argv = ["retrain", *arguments]
    try:
        main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    finally:
        atexit._run_exitfuncs()
    return 0


def fill_disk(pid: int) -> None:
    """Let nothing that a process writes to a file find room (EFBIG: SQLite takes it for a full disk)."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))


def free_disk(pid: int) -> None:
    """Let it find room again."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))


def _arm(fault: dict[str, Any]) -> list[int]:
    """Prepare the fault; return the count of moments, which goes on."""
    count = [0]
    victims = fault["kill"] or ([] if fault["full"] else [os.getpid()])
    import tasks.train

    tasks.train.GRACE_SECONDS = fault["patience"]

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not flags & _WRITES or str(path).endswith(".pyc") or "/told-" in str(path):
                return
        elif event not in _STEPS:
            return
        count[0] += 1
        if count[0] == fault["at"]:
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
            for pid in fault["full"]:
                fill_disk(pid)

    sys.addaudithook(watch)
    return count


def _warm_up(empty_registry: Path) -> None:
    """Import and try once what takes long, so that no night has to."""
    from infra.runtime import prepare_environment
    from infra.settings.settings import load_settings

    with tempfile.TemporaryDirectory() as folder:
        os.environ["RETRAIN_HOME"] = folder
        prepare_environment(load_settings())
        for module in IMPORTED:
            importlib.import_module(module)
        from tests.rivals import _warm_up as warm_up_registry

        warm_up_registry(empty_registry)


if __name__ == "__main__":
    # What is printed by whatever is imported is no answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _warm_up(Path(sys.argv[1]))
    for line in sys.stdin:
        asked = json.loads(line)
        answer = _fork(asked) if asked["do"] == "start" else os.waitpid(asked["pid"], 0)[1]
        answers.write(f"{answer}\n")
        answers.flush()
