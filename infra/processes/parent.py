"""Child processes that never outlive their parent, even one that was killed with SIGKILL.

As a program, ``python -m infra.processes.parent PARENT MODULE ARGUMENT ...`` runs MODULE like ``python -m``, tied to
the process PARENT. A process that starts many (``retrain up``) tags them all, so that grandchildren, which others start
in sessions of their own, can be found and ended too; ``python -m infra.processes.parent kill-orphans TAG`` does that
once ``retrain up`` itself has been killed.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

EVERY_SECONDS = 0.5
PROCESS_TAG = "MALARIA_MACHINE"


def die_with_parent(parent: int) -> None:
    """End this process within a second of the end of ``parent``, the process that started it.

    A thread polls the parent's id: an orphan gets another parent. Linux could send a signal (PR_SET_PDEATHSIG), but it
    also does so when only the *thread* that started the child ends, which kills the children of a flow that runs in a
    worker's thread.
    """

    def watch() -> None:
        _wait_for_end_of(parent)
        os._exit(1)

    threading.Thread(target=watch, name="die-with-parent", daemon=True).start()


def _wait_for_end_of(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(EVERY_SECONDS)


def make_tag(pid: int) -> str:
    """Return a name for a live process that is never used again: its id and its start, since ids are reused."""
    # The kernel's ticks: psutil's create_time() moves when the clock is set.
    started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{pid}:{started}"


def kill_orphans(tag: str) -> None:
    """Wait for the end of this process's parent, which made ``tag``, then kill every process with the tag.

    A process that was only just started, by a worker that dies with its parent, does not watch its parent yet.
    """
    _wait_for_end_of(int(tag.partition(":")[0]))
    kill_tagged(tag)


def tagged_processes(tag: str) -> list[int]:
    """Return the ids of all live processes, except this one, that have ``tag`` in their environment."""
    import psutil

    pids = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended, or belongs to another user
            tagged = process.pid != os.getpid() and process.environ().get(PROCESS_TAG) == tag
            if tagged and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                pids.append(process.pid)
    return pids


def kill_tagged(tag: str, *, but: Collection[int] = (), within: float = 10.0) -> list[int]:
    """Kill all processes with ``tag``; return those still alive after ``within`` seconds, which should be none."""
    until = time.monotonic() + within
    while (left := [pid for pid in tagged_processes(tag) if pid not in but]) and time.monotonic() < until:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    return left


if __name__ == "__main__":
    if sys.argv[1] == "kill-orphans":
        kill_orphans(sys.argv[2])
        sys.exit()
    die_with_parent(int(sys.argv[1]))
    sys.argv = sys.argv[2:]
    # Libraries look for settings where they run (.env, prefect.toml, matplotlibrc): not in a folder of anyone's.
    os.chdir("/")
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
