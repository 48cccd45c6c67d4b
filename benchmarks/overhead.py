"""What a night with nothing new costs: seconds of CPU, and seconds from trigger to verdict against a running server.

    python -m benchmarks.overhead [--times N] [--json FILE]

Starts `retrain up` on a store of its own in a temporary folder, runs one night with fake CNNs, and then nights with
nothing new: by hand in a process of its own, and sent to the worker as a schedule or a button would. Also the CPU of
importing alone, to set them beside. Nothing else should be running on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from infra.processes.parent import tagged_processes
from tests import ROOT
from tests.fleet import Up, ended, fill, running

IMPORTS = ("prefect", "mlflow", "flows.retrain")


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _here(machine: Up, *arguments: str) -> tuple[float, float]:
    """Run a command; return its seconds of CPU and of wall clock."""
    cpu, wall = _children(), time.monotonic()
    environment = {**machine.environment, "PREFECT_API_URL": machine.server.url}
    subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, check=True, capture_output=True)
    return _children() - cpu, time.monotonic() - wall


def _of_worker(machine: Up) -> float:
    """Return the seconds of CPU of all that the cpu pool's worker has started and buried."""
    for pid in tagged_processes(machine.mark):
        if b"worker\0start\0--pool\0cpu" in Path(f"/proc/{pid}/cmdline").read_bytes():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
    raise RuntimeError("no worker of the pool cpu")


def _on_worker(machine: Up) -> tuple[float, float]:
    """Send a night to the worker; return its seconds of CPU, and those from trigger to verdict."""
    cpu, wall = _of_worker(machine), time.monotonic()
    run = ended(machine.server, machine.server.create_run("retrain/nightly")["id"])
    took = time.monotonic() - wall
    if run["state_name"] != "Completed":
        raise RuntimeError(f"the night is {run['state_name']}: {run['state']['message']}")
    time.sleep(3)  # until the process is buried
    return _of_worker(machine) - cpu, took


def measure(times: int) -> dict[str, dict[str, float]]:
    """Return for each case the medians of seconds of CPU and of wall clock."""
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        machine = Up(Path(folder))
        fill(machine.store)
        with running(machine):
            _on_worker(machine)
            cases: dict[str, Callable[[], tuple[float, float]]] = {
                **{f"import {name}": partial(_here, machine, "-c", f"import {name}") for name in IMPORTS},
                "nothing new, by hand": lambda: _here(machine, "-m", "flows.cli", "run"),
                "nothing new, on a worker": lambda: _on_worker(machine),
            }
            found = {name: [case() for _ in range(times)] for name, case in cases.items()}
    return {
        name: {key: round(statistics.median(one[n] for one in runs), 2) for n, key in enumerate(("cpu_s", "wall_s"))}
        for name, runs in found.items()
    }


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = measure(arguments.times)
    print(f"{'':<26}{'CPU s':>8}{'wall s':>8}   (median of {arguments.times}; load {os.getloadavg()[0]:.1f})")
    for name, seconds in found.items():
        print(f"{name:<26}{seconds['cpu_s']:>8.2f}{seconds['wall_s']:>8.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
