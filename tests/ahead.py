"""What takes a minute and needs no test to wait for it: begun when the session begins, done while fast tests run.

A module of tests asks for it with a function ``ahead(lane)`` of its own; its tests get what that returned, or raised,
from the fixture of the same name. All of them stand in one lane: one process at a time runs beside the tests. Where
tests themselves run in several processes a module begins when it is its turn.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

from tests import ROOT


class Lane:
    """One process after the other, none of which outlives the session. ``folder`` is theirs to write to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # As it was at the beginning: tests change theirs.
        self.environment = dict(os.environ)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._begun: dict[str, Future[Any]] = {}
        self._lock = Lock()
        self._closed = False
        self._process: subprocess.Popen[str] | None = None

    def begin(self, module: ModuleType) -> None:
        """Let a module's ``ahead`` stand in the lane, once."""
        if module.__name__ not in self._begun:
            self._begun[module.__name__] = self._pool.submit(module.ahead, self)

    def result(self, module: str) -> Any:
        """Wait for what a module's ``ahead`` returns."""
        return self._begun[module].result()

    def run(self, command: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the session has ended")
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=self.environment | environment,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
        shown, told = self._process.communicate()
        return subprocess.CompletedProcess(command, self._process.returncode, shown, told)

    def close(self) -> None:
        """End what still runs; whoever waited for it has gone."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.kill()
        self._pool.shutdown(cancel_futures=True)
