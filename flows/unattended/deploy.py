"""Deploys prefect.yaml and the alerts to a Prefect server: ``python -m flows.unattended.deploy`` (`make deploy`).

Prefect's own ``deploy --all`` creates and updates, but removes neither a deployment nor a schedule that is gone from
the file; this does. A schedule that was paused on Prefect's page stays paused.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import yaml

from flows import console
from flows.unattended.alerts import apply_alerts
from infra.environment import CODE_ROOT, prefect_api_url
from infra.prefect_api import PrefectServer
from infra.processes.gpus import gpus
from infra.report_server import page_address
from infra.runtime import prepare_environment
from infra.settings.settings import Settings, load_settings
from infra.store.keys import INDEX, report_key
from validation.errors import RetrainError, UsageError

log = logging.getLogger(__name__)

# Only deployments with this tag are ever removed: a server may have others.
TAG = "malaria-retraining"
# In a wheel it lies beside the flows; in a checkout a link there leads to the root, where Prefect's own command looks.
FILE = CODE_ROOT / "flows" / "prefect.yaml"


def deploy(server: PrefectServer, settings: Settings, login: Mapping[str, str] | None = None) -> None:
    """Register the deployments and the alerts, and remove those that are no longer defined.

    ``login`` is the environment that Prefect's own command needs besides the server's address.

    Raises:
        RetrainError: when Prefect refuses prefect.yaml.
    """
    environment = {**os.environ, "PREFECT_API_URL": server.url, **(login or {})}
    # Where the workers find the code: this checkout, unless set otherwise (/app in an image).
    environment.setdefault("MALARIA_CODE", str(CODE_ROOT))
    # The registry and folder of the images, for pools of containers: as infra/deploy/images/Dockerfile names them.
    environment.setdefault("MALARIA_IMAGES", "malaria")
    environment["MALARIA_SITE"] = page_address(settings.site, report_key(INDEX)) or "`retrain site`"
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(FILE)],
        cwd=CODE_ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()
        raise RetrainError("`prefect deploy --all` failed: " + "\n".join(lines[-5:]), "see prefect.yaml")
    remove_stale(server, list(yaml.safe_load(FILE.read_text())["deployments"]))
    refuse_unknown_parameters(server)
    for name, what in sorted(apply_alerts(server, settings.alerts).items()):
        if what != "unchanged":
            log.info("alert %r: %s", name, what)


def remove_stale(server: PrefectServer, wanted: list[dict[str, Any]]) -> None:
    """Remove the project's deployments that are not in prefect.yaml, and schedules of those that are."""
    # A deployment is identified by its name and its entrypoint; prefect.yaml does not name its flow.
    entries = {(entry["name"], entry["entrypoint"]): entry for entry in wanted}
    for full_name, deployment in server.deployments().items():
        if TAG not in deployment["tags"]:
            continue
        entry = entries.get((deployment["name"], deployment["entrypoint"]))
        if entry is None:
            server.ask("DELETE", f"/deployments/{deployment['id']}")
            log.info("removed the deployment %s: it is not in prefect.yaml", full_name)
            continue
        slugs = {schedule["slug"] for schedule in entry.get("schedules") or []}
        for schedule in deployment["schedules"]:
            if schedule["slug"] not in slugs:
                server.ask("DELETE", f"/deployments/{deployment['id']}/schedules/{schedule['id']}")
                log.info("removed a schedule of %s: it is not in prefect.yaml", full_name)


def refuse_unknown_parameters(server: PrefectServer) -> None:
    """Make the server refuse parameters that a flow does not have; by default Prefect checks only known ones."""
    for deployment in server.deployments().values():
        schema = deployment["parameter_openapi_schema"]
        if TAG in deployment["tags"] and schema.get("additionalProperties") is not False:
            closed = {**schema, "additionalProperties": False}
            server.ask("PATCH", f"/deployments/{deployment['id']}", {"parameter_openapi_schema": closed})


def ensure_pools(server: PrefectServer, settings: Settings) -> int:
    """Create the process pools ``cpu`` and ``gpu`` if missing; return how many trainings run at once."""
    slots = settings.up.gpu_slots or max(1, len(gpus()))
    server.ensure_pool("cpu", None)
    server.ensure_pool("gpu", slots)
    return slots


def main() -> None:
    """Deploy to the server that PREFECT_API_URL names; with --pools create the process pools first.

    A pool of another type (Kubernetes, ECS) is created once with Prefect's own command: see docs/how-to/cluster.md.
    """
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
