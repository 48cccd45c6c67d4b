"""prefect.yaml: it parses, every entrypoint imports, and it says what the design promises."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any

import pytest
import yaml
from prefect import Flow
from prefect.utilities.callables import parameter_schema

from flows.unattended.deploy import TAG
from infra.inherited import PATIENCE
from tests import ROOT

pytestmark = pytest.mark.thorough

CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "prefect.yaml").read_text())
DEPLOYMENTS: list[dict[str, Any]] = CONFIG["deployments"]


def flow_of(deployment: dict[str, Any]) -> Flow[Any, Any]:
    file, name = deployment["entrypoint"].split(":")
    assert (ROOT / file).is_file()
    flow = getattr(importlib.import_module(file.removesuffix(".py").replace("/", ".")), name)
    assert isinstance(flow, Flow)
    return flow


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: str(deployment["name"]))
def test_every_entrypoint_imports_and_is_a_flow(deployment: dict[str, Any]) -> None:
    assert flow_of(deployment).name
    assert deployment["work_pool"]["name"] in ("cpu", "gpu")
    assert deployment["description"]


def test_the_nightly_run_has_a_schedule_with_a_time_zone_and_never_overlaps() -> None:
    [nightly] = [d for d in DEPLOYMENTS if d["name"] == "nightly"]
    assert flow_of(nightly).name == "retrain"
    [schedule] = nightly["schedules"]
    assert len(schedule["cron"].split()) == 5
    assert schedule["timezone"]
    # Not cancelled: a second night may have been started for cells that the first did not see.
    assert nightly["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
    # With a slug a schedule is updated in place, and without `active` a paused one stays paused.
    assert schedule["slug"]
    assert "active" not in schedule


def test_every_deployment_has_the_tag_a_heartbeat_and_patience() -> None:
    for deployment in DEPLOYMENTS:
        # Only tagged deployments are removed once they are gone from the file (flows/unattended/deploy.py).
        assert deployment["tags"] == [TAG]
        environment = deployment["work_pool"]["job_variables"]["env"]
        assert environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
        assert environment.items() >= PATIENCE.items()


def test_the_models_parameter_allows_every_model() -> None:
    from tasks.models import model_names

    schema = parameter_schema(flow_of(next(d for d in DEPLOYMENTS if d["name"] == "nightly"))).model_dump()
    [choice] = [part for part in schema["properties"]["models"]["anyOf"] if part.get("type") == "array"]
    assert choice["items"]["enum"] == list(model_names())


def test_every_model_has_a_training_deployment_on_the_gpu_pool() -> None:
    from tasks.models import model_names

    trainings = {d["name"]: d for d in DEPLOYMENTS if flow_of(d).name == "train"}
    assert set(trainings) == set(model_names())
    assert {d["work_pool"]["name"] for d in trainings.values()} == {"gpu"}


def test_the_pull_step_is_explicit() -> None:
    # By default Prefect stores the folder of the deploying checkout.
    assert CONFIG["pull"] == [{"prefect.deployments.steps.set_working_directory": {"directory": "{{ $MALARIA_CODE }}"}}]


def test_operating_the_machine_does_not_load_prefect() -> None:
    # Prefect reads the environment when it is imported, and a command prepares that only when it runs.
    code = "import sys, flows.unattended.notify, flows.unattended.deploy\nprint('prefect' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"
