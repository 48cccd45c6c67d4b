"""Deploys prefect.yaml and the alerts to a Prefect server: ``python -m flows.unattended.deploy`` (`make deploy`).

Prefect's own ``deploy --all`` creates and updates, but removes nothing: neither a schedule that is gone from the file
nor a deployment. That is done here. A schedule that somebody paused on Prefect's page stays paused.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import yaml

from flows.unattended.alerts import apply_alerts
from infra.environment import CODE_ROOT, prefect_api_url
from infra.prefect_api import PrefectServer
from infra.processes.gpus import gpus
from infra.runtime import prepare_environment
from infra.settings.settings import Settings, load_settings
from validation.errors import RetrainError, UsageError

log = logging.getLogger(__name__)

# Only what carries it is ever removed: a server may have deployments of other people.
TAG = "malaria-retraining"


def deploy(server: PrefectServer, settings: Settings, login: Mapping[str, str] | None = None) -> None:
    """Register the deployments and the alerts, and remove what is no longer wanted.

    ``login`` is what Prefect's own command has to be told besides the server's address.

    Raises:
        RetrainError: when Prefect refuses prefect.yaml.
    """
    environment = {**os.environ, "PREFECT_API_URL": server.url, **(login or {})}
    # Where the workers find the code: this checkout, unless the deployer says otherwise (/app in an image).
    environment.setdefault("MALARIA_CODE", str(CODE_ROOT))
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
        cwd=CODE_ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()
        raise RetrainError("`prefect deploy --all` failed: " + "\n".join(lines[-5:]), "see prefect.yaml")
    wanted = list(yaml.safe_load((CODE_ROOT / "prefect.yaml").read_text())["deployments"])
    remove_stale(server, wanted)
    refuse_unknown_parameters(server)
    for name, what in sorted(apply_alerts(server, settings.alerts).items()):
        if what != "unchanged":
            log.info("alert %r: %s", name, what)


def remove_stale(server: PrefectServer, wanted: list[dict[str, Any]]) -> None:
    """Remove our deployments that are not in prefect.yaml, and schedules of those that are."""
    # A deployment is known by its name and its entrypoint; the flow's own name stands only in the code.
    entries = {(entry["name"], entry["entrypoint"]): entry for entry in wanted}
    for full_name, found in server.deployments().items():
        if TAG not in found["tags"]:
            continue
        entry = entries.get((found["name"], found["entrypoint"]))
        if entry is None:
            server.ask("DELETE", f"/deployments/{found['id']}")
            log.info("removed the deployment %s: it is not in prefect.yaml", full_name)
            continue
        slugs = {schedule["slug"] for schedule in entry.get("schedules") or []}
        for schedule in found["schedules"]:
            if schedule["slug"] not in slugs:
                server.ask("DELETE", f"/deployments/{found['id']}/schedules/{schedule['id']}")
                log.info("removed a schedule of %s: it is not in prefect.yaml", full_name)


def refuse_unknown_parameters(server: PrefectServer) -> None:
    """Let a parameter that a flow does not have be refused before there is a run; Prefect checks only the others."""
    for found in server.deployments().values():
        schema = found["parameter_openapi_schema"]
        if TAG in found["tags"] and schema.get("additionalProperties") is not False:
            closed = {**schema, "additionalProperties": False}
            server.ask("PATCH", f"/deployments/{found['id']}", {"parameter_openapi_schema": closed})


def ensure_pools(server: PrefectServer, settings: Settings) -> int:
    """Let there be the pools ``cpu`` and ``gpu``, of processes; return how many trainings run at once."""
    slots = settings.up.gpu_slots or max(1, len(gpus()) // settings.training.devices)
    server.ensure_pool("cpu", None)
    server.ensure_pool("gpu", slots)
    return slots


def main() -> None:
    """Deploy to the server that PREFECT_API_URL names; with --pools make the pools first, of processes.

    A pool of another type, on Kubernetes or ECS, is made once with Prefect's own command: see docs/operations.md.
    """
    from flows import console

    try:
        settings = load_settings()
        prepare_environment(settings)
        console.prepare_logging()
        url = prefect_api_url()
        if url is None:
            raise UsageError("PREFECT_API_URL names no Prefect server", "`retrain up` starts one and deploys to it")
        server = PrefectServer(url)
        if "--pools" in sys.argv[1:]:
            ensure_pools(server, settings)
        deploy(server, settings)
    except RetrainError as error:
        console.error(error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
