"""Child processes that never outlive their parent, not even one that was killed with SIGKILL.

As a program, ``python -m infra.processes.parent PARENT MODULE ARGUMENT ...`` runs MODULE like ``python -m``, tied to
the process PARENT. A process that starts many (``retrain up``) tags them all, so that its children's children, which
others start in sessions of their own, can be found and ended too; ``python -m infra.processes.parent kill-orphans
TAG`` does that when ``retrain up`` was killed itself.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Collection
from pathlib import Path

EVERY_SECONDS = 0.5
PROCESS_TAG = "MALARIA_MACHINE"


def die_with_parent(parent: int) -> None:
    """End this process within a second of the end of ``parent``, the process that started it.

    A thread asks who the parent is: an orphan is given another one. Linux would send a signal by itself
    (PR_SET_PDEATHSIG), but also when only the *thread* that started the child has ended, which kills the children of
    a flow that runs in a worker's thread.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(EVERY_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="die-with-parent", daemon=True).start()


def make_tag(pid: int) -> str:
    """Return what names a live process for ever: its number, and when it began, since numbers are used again."""
    return f"{pid}:{_start_time(pid)}"


def kill_orphans(mark: str) -> None:
    """Wait for the end of the process that ``mark`` names, then end everything that carries the mark.

    A process that was only just started, by a worker that dies with its parent, cannot yet look after itself.
    """
    pid, _, began = mark.partition(":")
    while _start_time(int(pid)) == began:
        time.sleep(EVERY_SECONDS)
    kill_tagged(mark)


def tagged_processes(mark: str) -> list[int]:
    """Return the numbers of all live processes, but this one, that carry ``mark`` in their environment."""
    wanted = f"{PROCESS_TAG}={mark}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        pid = int(path.parent.name)
        try:
            if pid != os.getpid() and wanted in path.read_bytes().split(b"\0") and _start_time(pid):
                found.append(pid)
        except OSError:
            continue  # ended while we looked, or not ours
    return found


def kill_tagged(mark: str, *, but: Collection[int] = (), within: float = 10.0) -> list[int]:
    """Kill all processes that carry ``mark``; return those that are there still, which should be none."""
    until = time.monotonic() + within
    while (left := [pid for pid in tagged_processes(mark) if pid not in but]) and time.monotonic() < until:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)
    return left


def _start_time(pid: int) -> str:
    """Return when a process began, in the kernel's ticks; nothing for one that is gone or only waits to be buried."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


if __name__ == "__main__":
    if sys.argv[1] == "kill-orphans":
        kill_orphans(sys.argv[2])
        sys.exit()
    die_with_parent(int(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
