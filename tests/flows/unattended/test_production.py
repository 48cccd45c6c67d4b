"""The services of infra/deploy/compose.yaml, their commands run as processes, for one scheduled night.

Real: PostgreSQL, Prefect's server on it with a password, MLflow's server on it, an S3 server, three workers on two
pools. Not real: the containers, and the CNNs.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import httpx
import pytest
import yaml

from infra.prefect_api import PrefectServer
from infra.prefect_server import free_port
from infra.store.s3 import S3Store
from tests import ROOT
from tests.fleet import EAGER, MODELS, ended, fake_environment, fill, hold_training, let_training_go, until
from tests.servers import databases

pytestmark = [pytest.mark.longest, pytest.mark.server, pytest.mark.slow(minutes=2), pytest.mark.timeout(1800)]

FILE: dict[str, Any] = yaml.safe_load((ROOT / "infra" / "deploy" / "compose.yaml").read_text())
COMPOSE, CONFIGS = FILE["services"], FILE["configs"]
REGION = os.environ.get("S3_TEST_REGION") or "us-east-1"
VALUES = {
    "POSTGRES_PASSWORD": "none",
    "PREFECT_AUTH": "operator:secret",
    "MLFLOW_USER": "operator",
    "MLFLOW_PASSWORD": "secret-of-mlflow",
    "MLFLOW_SECRET_KEY": "not-so-secret",
    "S3_USER": "test-key",
    "S3_PASSWORD": "test-secret",
    "GPU_SLOTS": "1",
    "MALARIA_CODE": str(ROOT),
}


class Machine:
    """The services of the compose file, on this machine's loopback."""

    def __init__(self, folder: Path, places: dict[str, str]) -> None:
        self.folder = folder
        self._places = places
        self.running: list[subprocess.Popen[bytes]] = []

    def text(self, value: str) -> str:
        """Fill in a value as compose does, and put this machine's addresses in place of the network's."""
        value = re.sub(
            r"\$\{(\w+)(?::([-?])([^}]*))?\}",
            lambda found: VALUES.get(found[1], (found[3] or "") if found[2] == "-" else ""),
            value,
        )
        for name, place in self._places.items():
            value = value.replace(name, place)
        return value

    def start(self, name: str) -> subprocess.Popen[bytes]:
        service = COMPOSE[name]
        home = self.folder / name
        environment = fake_environment(self.folder, home, RETRAIN_TRAINING__MEMBERS="1") | {
            "PREFECT_HOME": str(home / "prefect"),
            "PREFECT_UI_STATIC_DIRECTORY": str(home / "prefect" / "ui"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            **{key: self.text(str(value)) for key, value in service["environment"].items()},
            **EAGER,
        }
        program, *arguments = [self.text(word) for word in service["command"]]
        # `retrain` is what the Dockerfile makes of it.
        ours = {"python": [sys.executable], "retrain": [sys.executable, "-m", "flows.cli"]}
        found = ours.get(program, [str(Path(sys.executable).parent / program)])
        home.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [*found, *arguments], cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        self.running.append(process)
        return process

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def stop(self) -> None:
        """Stop all services, the latest first; kill the session of one that does not stop."""
        for process in reversed(self.running):
            process.terminate()
        for process in reversed(self.running):
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, 9)
                process.wait()


@pytest.fixture
def s3(moto_endpoint: str, fake_aws: None, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str, str]:
    """An S3 server with two empty buckets: its address, the cells' bucket, MLflow's. A real one if configured."""
    endpoint = os.environ.get("S3_TEST_ENDPOINT") or moto_endpoint
    if endpoint != moto_endpoint:
        for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
            monkeypatch.setenv(f"AWS_{name}", os.environ[f"S3_TEST_{name}"])
    client = boto3.session.Session().client("s3", endpoint_url=endpoint, region_name=REGION)
    buckets = [f"{name}-{uuid.uuid4().hex[:8]}" for name in ("cells", "mlflow")]
    for bucket in buckets:
        client.create_bucket(Bucket=bucket)
    client.close()
    monkeypatch.setitem(VALUES, "S3_USER", os.environ["AWS_ACCESS_KEY_ID"])
    monkeypatch.setitem(VALUES, "S3_PASSWORD", os.environ["AWS_SECRET_ACCESS_KEY"])
    return endpoint, buckets[0], buckets[1]


@pytest.fixture
def machine(tmp_path: Path, s3: tuple[str, str, str], postgres: str) -> Iterator[Machine]:
    endpoint, cells, artifacts = s3
    login = tmp_path / "mlflow-login.ini"
    login.write_text(CONFIGS["mlflow-login"]["content"].replace("/data/", f"{tmp_path}/"))
    with databases(postgres, "prefect", "mlflow"):
        places = {
            "postgres:5432": urlsplit(postgres).netloc.rpartition("@")[2],
            "http://s3:9000": endpoint,
            "us-east-1": REGION,
            "s3://cells": f"s3://{cells}",
            "s3://mlflow": f"s3://{artifacts}",
            "prefect:4200": "127.0.0.1:4200",
            "/etc/mlflow-login.ini": str(login),
            "mlflow:5000": "127.0.0.1:5000",
            "0.0.0.0": "127.0.0.1",
            "4200": str(free_port()),
            "5000": str(free_port()),
            "8765": str(free_port()),
        }
        made = Machine(tmp_path, places)
        try:
            yield made
        finally:
            made.stop()


def test_a_night_goes_through_by_its_schedule_to_a_promotion(machine: Machine, s3: tuple[str, str, str]) -> None:
    endpoint, cells, _ = s3
    store = S3Store(f"s3://{cells}", endpoint=endpoint, region=REGION)
    fill(store, 30)
    machine.start("prefect")
    machine.start("mlflow")
    url = machine.text("http://prefect:4200/api")
    server = PrefectServer(url, auth=VALUES["PREFECT_AUTH"])
    until(server.healthy)
    assert httpx.post(f"{url}/flow_runs/filter", json={}, trust_env=False, timeout=120).status_code == 401
    assert machine.start("deploy").wait(timeout=600) == 0, machine.log("deploy")
    hold_training(machine.folder, "fastai")
    for worker in ("worker-cpu", "worker-fastai"):
        machine.start(worker)
    registry = machine.text("http://mlflow:5000")
    until(lambda: _answers(f"{registry}/health"))

    nightly = server.deployment("retrain/nightly")
    run = _scheduled(server, nightly["id"])
    assert "auto-scheduled" in run["tags"]
    _see_that_one_slot_is_one_training(machine, server)
    run = ended(server, run["id"])
    assert run["state_name"] == "Completed", machine.log("worker-cpu")[-3000:]

    # Both trainings ran in the gpu pool, each on its own worker; with one slot, one after the other.
    trainings = [found for name in MODELS for found in server.runs(deployment=f"train/{name}")]
    assert {training["work_pool_name"] for training in trainings} == {"gpu"}
    assert {training["state_name"] for training in trainings} == {"Completed"}
    first, second = sorted(trainings, key=lambda training: training["start_time"])
    assert first["end_time"] <= second["start_time"]
    for name in MODELS:
        assert f"{name}, member 1, epoch" in machine.log(f"worker-{name}")
    alias = f"{registry}/api/2.0/mlflow/registered-models/alias"
    asked = {"name": "malaria-cell", "alias": "champion"}
    assert httpx.get(alias, params=asked, trust_env=False).status_code == 401
    login = (VALUES["MLFLOW_USER"], VALUES["MLFLOW_PASSWORD"])
    answer = httpx.get(alias, params=asked, auth=login, trust_env=False)
    assert answer.json()["model_version"]["version"] == "1"
    kept = [info.key for info in store.list("retraining/")]
    assert any(key.startswith("retraining/reports/") for key in kept)
    assert any(key.startswith("retraining/history/") for key in kept)
    _see_that_the_reports_are_served(machine, server, run)


def _see_that_the_reports_are_served(machine: Machine, server: PrefectServer, night: dict[str, Any]) -> None:
    """The link on Prefect's page leads to the service of the compose file, which asks for the login of that page."""
    machine.start("site")
    address = machine.text(COMPOSE["site"]["environment"]["RETRAIN_SITE__ADDRESS"])
    until(lambda: _knocks(address))
    found = server.ask("POST", "/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [night["id"]]}}})
    [link] = [one["data"] for one in found if one["key"] == "promotion-report-page"]
    page = link.rpartition("(")[2].rstrip(")")
    assert page.startswith(f"{address}/reports/")
    assert httpx.get(page, trust_env=False).status_code == 401
    user, _, password = VALUES["PREFECT_AUTH"].partition(":")
    assert "First champion" in httpx.get(page, auth=(user, password), trust_env=False).text


def _see_that_one_slot_is_one_training(machine: Machine, server: PrefectServer) -> None:
    """While fastai is trained, the worker for Keras asks for work and gets none, though there is some.

    It is started only now: Prefect hands out what it has to workers that ask at the same moment, whatever the limit.
    """
    until(lambda: server.runs(deployment="train/fastai", states=["RUNNING"]))
    [waiting] = until(lambda: server.runs(deployment="train/keras"))
    machine.start("worker-keras")
    for _ in range(2):
        before = datetime.now(UTC)
        until(lambda: _asked(server, "keras") > before)  # noqa: B023 - called at once
    assert server.run(waiting["id"])["state_type"] == "SCHEDULED"
    let_training_go(machine.folder, "fastai", waiting=True)


def _asked(server: PrefectServer, queue: str) -> datetime:
    """Return when a worker last asked for the work of a queue of the gpu pool."""
    polled = server.ask("GET", f"/work_pools/gpu/queues/{queue}")["last_polled"]
    return datetime.fromisoformat(polled) if polled else datetime.min.replace(tzinfo=UTC)


def _scheduled(server: PrefectServer, deployment: str) -> dict[str, Any]:
    """Schedule a night soon; if the scheduler is too late for that, a little later."""
    for seconds in (8, 30, 120, 300):
        soon = datetime.now(UTC) + timedelta(seconds=seconds)
        schedule = {"interval": 86_400, "anchor_date": soon.isoformat(), "timezone": "UTC"}
        server.ask("PATCH", f"/deployments/{deployment}", {"schedules": [{"slug": "soon", "schedule": schedule}]})
        with contextlib.suppress(AssertionError):
            [run] = until(lambda: [r for r in server.runs(deployment="retrain/nightly") if _is_due(r, soon)], seconds)  # noqa: B023 - called at once
            return dict(run)
    raise AssertionError("the scheduler wrote no run")


def _is_due(run: dict[str, Any], soon: datetime) -> bool:
    return abs(datetime.fromisoformat(run["expected_start_time"]) - soon) < timedelta(seconds=2)


def _knocks(url: str) -> bool:
    """Whether something answers at an address, if only to ask for a login."""
    try:
        return httpx.get(url, trust_env=False, timeout=120).status_code == 401
    except httpx.TransportError:
        return False


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False, timeout=120).is_success
    except httpx.TransportError:
        return False
