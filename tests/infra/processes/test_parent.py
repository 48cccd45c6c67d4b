"""Children die with their parent, and with nothing less."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from infra.processes.parent import EVERY_SECONDS, kill_tagged, make_tag, tagged_processes
from tests import ROOT

pytestmark = pytest.mark.thorough

# A module to run: it says who it is, then waits longer than any test.
CHILD = "import os, sys, time\nprint(os.getpid(), *sys.argv[1:], flush=True)\ntime.sleep(600)\n"
PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-m", "infra.processes.parent", str(os.getpid()), "waits", "a", "b c"])
child.wait()
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "waits.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # an orphan may stay a zombie


def is_gone(pid: int, seconds: float = 120) -> bool:
    """Wait for the end of a process, which looks for its parent between whatever else a busy machine does."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not is_alive(pid):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_dies_with_its_parent(how: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        pid, *arguments = parent.stdout.readline().split(maxsplit=1)
        assert arguments == ["a b c\n"]
        parent.send_signal(how)
        parent.wait()
    assert is_gone(int(pid))


def test_a_child_outlives_the_thread_that_started_it() -> None:
    """Linux's own parent death signal is about threads: it killed the children of flows that ran in one."""
    children: list[subprocess.Popen[str]] = []

    def start() -> None:
        command = [sys.executable, "-m", "infra.processes.parent", str(os.getpid()), "waits"]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert child.stdout
        child.stdout.readline()
        children.append(child)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    (child,) = children
    with child:
        try:
            time.sleep(3 * EVERY_SECONDS)
            assert child.poll() is None
        finally:
            child.kill()


def test_a_process_in_its_own_session_ends_when_its_ancestor_is_killed(tmp_path: Path) -> None:
    """As Prefect's workers start flow runs; the reaper ends what cannot look after itself."""
    program = """
import os, subprocess, sys, time
from infra.processes.supervisor import Supervisor
from pathlib import Path
services = Supervisor(Path(sys.argv[1]))
environment = {**os.environ, "MALARIA_MACHINE": services.mark}
child = subprocess.Popen([sys.executable, "-m", "waits"], env=environment, start_new_session=True)
print(child.pid, services._reaper.pid, flush=True)
time.sleep(600)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "logs")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout
        lines = {parent.stdout.readline() for _ in range(2)}
        [numbers] = [line for line in lines if len(line.split()) == 2]
        parent.send_signal(signal.SIGKILL)
    for pid in map(int, numbers.split()):
        assert is_gone(pid)


def test_a_mark_names_one_process_and_not_the_next_of_its_number() -> None:
    mark = make_tag(os.getpid())
    assert mark == make_tag(os.getpid())
    with subprocess.Popen(["sleep", "600"], env={"MALARIA_MACHINE": mark, "PATH": os.environ["PATH"]}) as child:
        try:
            # Popen returns when the program is loaded, which may be before the kernel shows its environment.
            until = time.monotonic() + 60
            while not (found := tagged_processes(mark)) and time.monotonic() < until:
                time.sleep(0.01)
            assert found == [child.pid]
            assert tagged_processes(mark[:-1]) == []
            assert kill_tagged(mark) == []
        finally:
            child.kill()


def test_an_orphan_ends_at_once() -> None:
    # Its parent is this process, not number 1: as if that had died before the child could look.
    done = subprocess.run(
        [sys.executable, "-m", "infra.processes.parent", "1", "waits"], capture_output=True, timeout=300, check=False
    )
    assert done.returncode == 1
