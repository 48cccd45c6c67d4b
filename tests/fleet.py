"""A machine of its own for tests of what runs unattended: a small store, fake CNNs in every process, free ports."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from infra.prefect_api import PrefectServer
from infra.prefect_server import free_port
from infra.settings.settings import Settings
from infra.store.base import Store
from infra.store.folder import FolderStore
from tests import ROOT
from tests.builders import SIDE, channel_member, plain_cells

MODELS = ("fastai", "keras")
# Prefect looks oftener, so that tests wait less, and not so often that a busy machine does nothing else. Its scheduler
# looks at what was changed just before, and at all others every minute: long for one that a busy server has missed.
EAGER = {
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "20",
    "PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY": "PT2S",
}
# Python reads it when it starts: in every process with its folder on the path the two real model modules are the fake
# one. A process that is forked without it on its path trains for real.
SITE = """
import importlib.abc, importlib.util, os, sys
class FakeCNNs(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        on_path = os.path.dirname(__file__) in os.environ.get("PYTHONPATH", "").split(":")
        if on_path and name in ("tasks.models.fastai.cnn", "tasks.models.keras.cnn"):
            return importlib.util.spec_from_file_location(name, {fake!r})
sys.meta_path.insert(0, FakeCNNs())
"""


def fill(store: Store, patients: int = 40, *, first: int = 1) -> int:
    """Put cells of some patients into a store; return how many."""
    cells = plain_cells(patients, 4, first=first)
    for key, data in cells.items():
        store.put(key, data)
    return len(cells)


def fake_cnns(folder: Path) -> dict[str, str]:
    """Return the variables by which a process and its children train fake CNNs; their files are in ``folder``."""
    site = folder / "site"
    site.mkdir(parents=True, exist_ok=True)
    (site / "sitecustomize.py").write_text(SITE.format(fake=str(ROOT / "tests" / "fake_cnn.py")))
    for name in MODELS:
        if not (folder / f"{name}.onnx").exists():  # it may be a pipe by now, see hold_training
            (folder / f"{name}.onnx").write_bytes(channel_member())
    return {
        "PYTHONPATH": ":".join([str(site), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "RETRAIN_TRAINING__SIDE": str(SIDE),
        # Two processes for each CNN are enough to be several.
        "RETRAIN_TRAINING__MEMBERS": "2",
        "RETRAIN_TRAINING__AT_ONCE": "1",
        **{f"RETRAIN_TRAINING__{name.upper()}": json.dumps({"model": str(folder / f"{name}.onnx")}) for name in MODELS},
    }


def fake_environment(folder: Path, home: Path, **settings: str) -> dict[str, str]:
    """Return the environment of a process that runs small nights with fake CNNs; nothing of this machine's own."""
    theirs = ("RETRAIN_", "PREFECT_", "MALARIA_", "MLFLOW_", "AWS_")
    ours = {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
    return {
        **ours,
        **fake_cnns(folder),
        "RETRAIN_HOME": str(home),
        "RETRAIN_DATA__MIN_CELLS_PER_CLASS": "2",
        "RETRAIN_DATA__MIN_PATIENTS_PER_CLASS": "2",
        "RETRAIN_GATE__RESAMPLES": "1000",
        "RETRAIN_GATE__MIN_PATIENTS": "3",
        "RETRAIN_GATE__MIN_CELLS_PER_CLASS": "5",
        # Floors hold for lower bounds, which few patients keep low.
        **{f"RETRAIN_GATE__MIN_{name}": "0.5" for name in ("AUC", "SENSITIVITY", "SPECIFICITY")},
        **EAGER,
        **settings,
    }


def hold_training(folder: Path, name: str) -> None:
    """Let a training wait in its middle: its model file is a pipe into which nobody writes."""
    path = folder / f"{name}.onnx"
    path.unlink()
    os.mkfifo(path)


def let_training_go(folder: Path, name: str, *, waiting: bool) -> None:
    """Give a training its model file, through the pipe to one that is waiting."""
    path = folder / f"{name}.onnx"
    beside = folder / f".{name}.onnx"
    beside.write_bytes(channel_member())
    if not waiting:
        beside.replace(path)
        return
    with path.open("wb") as pipe:
        # Before the waiting one gets its file: the next member must find no pipe.
        beside.replace(path)
        pipe.write(channel_member())


class Up:
    """``retrain up`` in a process of its own, of the Python and from the folder where the code is found."""

    python, cwd = sys.executable, ROOT

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.port = free_port()
        self.site = f"http://127.0.0.1:{free_port()}"
        ports = {"RETRAIN_UP__PORT": str(self.port), "RETRAIN_SITE__PORT": self.site.rpartition(":")[2]}
        self.environment = fake_environment(
            folder, self.home, **ports, **{"RETRAIN_TRAINING__MEMBERS": "1", **settings}
        )
        self.server = PrefectServer(f"http://127.0.0.1:{self.port}/api")
        self.process: subprocess.Popen[str] | None = None
        self.mark = ""

    @property
    def store(self) -> FolderStore:
        (self.home / "store").mkdir(parents=True, exist_ok=True)
        return FolderStore(self.home / "store")

    @property
    def settings(self) -> Settings:
        return Settings(home=self.home, up={"port": self.port})

    def start(self) -> dict[str, str]:
        """Start it and return what it prints once it is ready."""
        from infra.processes.parent import make_tag

        with (self.folder / "up.log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.python, "-m", "flows.cli", "up", "--json"],
                cwd=self.cwd, env=self.environment, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        self.mark = make_tag(self.process.pid)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, (self.folder / "up.log").read_text()
        addresses: dict[str, str] = json.loads(line)
        return addresses

    def hold_trainings(self) -> None:
        """Let trainings wait in their middle: their model files are pipes into which nobody writes."""
        for name in MODELS:
            hold_training(self.folder, name)

    def let_trainings_go(self, *, waiting: bool) -> None:
        """Give them their model files, through the pipe to those that are waiting."""
        for name in MODELS:
            let_training_go(self.folder, name, waiting=waiting)

    def training_now(self) -> list[str]:
        """Return which trainings run at this moment."""
        return [name for name in MODELS if self.server.runs(deployment=f"train/{name}", states=["RUNNING"])]

    def processes(self) -> list[str]:
        """Return the command lines of all that it started and that is still there, and of itself."""
        from infra.processes.parent import tagged_processes

        found = {str(pid): "" for pid in tagged_processes(self.mark)}
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if path.parent.name in found or f"kill-orphans {self.mark} " in command:
                    found[path.parent.name] = command
        return list(found.values())

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        code = self.process.wait(timeout=300)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the command line in the same surroundings."""
        return subprocess.run(
            [self.python, "-m", *arguments],
            cwd=self.cwd, env={**self.environment, "PREFECT_API_URL": self.server.url},
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip


@contextlib.contextmanager
def running(machine: Up) -> Iterator[dict[str, str]]:
    """Have a machine run, and end it whatever happens."""
    try:
        yield machine.start()
    finally:
        if machine.process is not None and machine.process.poll() is None:
            machine.end()


def until(true: Callable[[], Any], seconds: float = 900.0) -> Any:
    """Wait until something is true and return it: on a busy machine too, since who waits in vain has failed anyway."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := true():
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds:g} s: {true}")


def ended(server: PrefectServer, run: str, seconds: float = 900.0) -> dict[str, Any]:
    """Wait for a run to end and return it."""

    def look() -> dict[str, Any] | None:
        found = server.run(run)
        return found if found["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

    found: dict[str, Any] = until(look, seconds)
    return found
