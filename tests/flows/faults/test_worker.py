"""Nights on a worker: the worker, the server and the night itself are killed, and a second night waits for the first.

Real: Prefect's server as `retrain up` sets it, a worker that `retrain up`'s own watch starts again, the nightly
deployment's concurrency limit from prefect.yaml.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.prefect_api import FINAL, PrefectServer
from infra.processes.supervisor import Service, Supervisor
from tests import ROOT
from tests.builders import channel_member
from tests.fleet import fake_environment, until
from tests.flows.faults.conftest import Prefect
from tests.nights import Nights, bring
from tests.sound import check_sound, inputs

pytestmark = [pytest.mark.longest, pytest.mark.server, pytest.mark.slow(minutes=1.3)]

# For a machine that is five times slower, and loaded.
LONG = 400.0


class Machine:
    """A worker on a machine's home folder, and the nightly deployment on a server."""

    def __init__(self, nights: Nights, prefect: Prefect, home: Path) -> None:
        self.home = home
        self.server = PrefectServer(prefect.url)
        self.pipe = nights.folder / "worker.onnx"
        recipe = json.dumps({"model": str(self.pipe)})
        environment = fake_environment(
            nights.folder, home, RETRAIN_TRAINING__KERAS=recipe, RETRAIN_TRAINING__MEMBERS="1"
        ) | {
            "PREFECT_API_URL": prefect.url,
            "PREFECT_HOME": str(nights.folder / "prefect"),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        }
        self._deploy()
        self.services = Supervisor(home / "logs")
        started = ["prefect", "worker", "start", "--pool", "cpu", "--name", "cpu"]
        self.worker: Service = self.services.start("worker", started, environment)

    def _deploy(self) -> None:
        """Register the nightly deployment of prefect.yaml, without its schedule."""
        [entry] = [
            d for d in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"] if d["name"] == "nightly"
        ]
        limit = entry["concurrency_limit"]
        self.server.ensure_pool("cpu", None)
        flow = self.server.ask("POST", "/flows/", {"name": "retrain"})
        body = {
            "name": "nightly",
            "flow_id": flow["id"],
            "entrypoint": entry["entrypoint"],
            "path": str(ROOT),
            "work_pool_name": "cpu",
            "job_variables": {"env": entry["work_pool"]["job_variables"]["env"], "working_dir": str(ROOT)},
            "concurrency_limit": limit["limit"],
            "concurrency_options": {"collision_strategy": limit["collision_strategy"]},
        }
        self.server.ask("POST", "/deployments/", body)

    def ask_for_a_night(self, *models: str) -> str:
        parameters = {"models": list(models)}
        return str(self.server.create_run("retrain/nightly", parameters=parameters)["id"])

    def in_training(self) -> list[int]:
        """Return the processes of trainings on this machine."""
        return [pid for pid, command in commands() if "tasks.training.child" in command and str(self.home) in command]

    def ended(self, run: str) -> dict[str, Any]:
        """Wait for a run to end and return it; restart what was killed meanwhile."""

        def look() -> dict[str, Any] | None:
            self.watched()
            found = self.server.run(run)
            return found if found["state_type"] in FINAL else None

        found: dict[str, Any] = until(look, LONG)
        return found

    def watched(self) -> bool:
        """Supervise the worker as `retrain up` does every second; return whether it runs."""
        self.services.supervise_once()
        return self.worker.process is not None

    def hold_the_training(self) -> None:
        """Make the next training wait: its model file is a pipe without a writer."""
        self.pipe.unlink(missing_ok=True)
        os.mkfifo(self.pipe)

    def give_the_model_and_hold_the_next(self) -> None:
        """Give the waiting training its model file; the next one will wait again."""
        beside = self.pipe.with_suffix(".next")
        os.mkfifo(beside)
        with self.pipe.open("wb") as pipe:
            beside.replace(self.pipe)
            pipe.write(channel_member())

    def hold_no_training(self) -> None:
        """Give every training from now on its model file."""
        self.pipe.unlink()
        self.pipe.write_bytes(channel_member())


def commands() -> list[tuple[int, str]]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append((int(path.parent.name), path.read_bytes().replace(b"\0", b" ").decode(errors="replace")))
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def machine(nights: Nights, prefect: Prefect) -> Iterator[Machine]:
    made = Machine(nights, prefect, nights.home("worker"))
    yield made
    made.services.close()


def test_worker_server_and_night_killed_and_a_second_night_that_waits(machine: Machine, prefect: Prefect) -> None:
    server = machine.server
    machine.hold_the_training()
    first = machine.ask_for_a_night("keras")
    until(machine.in_training, LONG)

    # The second night does not begin, however long the first one takes, even more than a day.
    second = machine.ask_for_a_night("keras")
    until(lambda: server.run(second)["state_name"] == "AwaitingConcurrencySlot", LONG)

    # The worker is killed: it is restarted, and the night that it had started continues.
    assert machine.worker.process
    killed = machine.worker.process.pid
    os.kill(killed, signal.SIGKILL)
    machine.worker.process.wait()
    until(machine.watched, LONG)
    assert machine.worker.process
    assert machine.worker.process.pid != killed
    assert machine.in_training()
    assert server.run(first)["state_type"] == "RUNNING"

    # The server is killed and restarted: the night keeps its slot; Prefect ends a night without one.
    os.kill(prefect.pid, signal.SIGKILL)
    prefect.start_again()
    lease = server.run(first)["state"]["state_details"]["deployment_concurrency_lease_id"]
    server.ask("POST", f"/v2/concurrency_limits/leases/{lease}/renew", {"lease_duration": 300})
    assert server.run(second)["state_type"] == "SCHEDULED"

    # It has pulled already: these cells are for the second night, whose training waits too.
    bring(machine.home, 4, first=50)
    before = inputs(machine.home)
    machine.give_the_model_and_hold_the_next()
    ended = machine.ended(first)
    assert ended["state_name"] == "Completed", ended["state"]
    assert check_sound(machine.home) == ["1"]
    until(machine.in_training, LONG)

    # The second night is killed: the alert "failed night" fires; no training is left; the third one continues.
    [training] = machine.in_training()
    night = int(Path(f"/proc/{training}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(night, signal.SIGKILL)
    assert machine.ended(second)["state_type"] == "CRASHED"
    until(lambda: not machine.in_training(), LONG)
    machine.hold_no_training()
    assert machine.ended(machine.ask_for_a_night("keras"))["state_name"] == "Completed"
    assert check_sound(machine.home) == ["1"]
    assert len(list((machine.home / "store/retraining/nights").glob("*.json"))) == 2
    assert inputs(machine.home) == before
