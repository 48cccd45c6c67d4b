"""A client of the Prefect server's HTTP API: pools, deployments, runs. It does not import Prefect."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from infra.environment import prefect_api_auth, prefect_api_url, prefect_page_url
from validation.errors import RetrainError, Unreachable

log = logging.getLogger(__name__)

Json = dict[str, Any]
ALIVE = ("PENDING", "RUNNING", "CANCELLING")
# Answers of a busy server, or of a proxy before it: on SQLite "unavailable" while another client is writing.
_BUSY = (429, 500, 502, 503, 504)
# Waits between retries, in seconds.
_WAITS = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
# State name of a run that ended because its machine was stopped: the night is restarted.
INTERRUPTED = "Interrupted"


def form_address(deployment: str, parameters: Json) -> str | None:
    """Return the address of a deployment's form on Prefect's page, filled in with ``parameters``.

    None where the environment names no server, or one that does not answer or has no such deployment.
    """
    url, page = prefect_api_url(), prefect_page_url()
    if url is None:
        return None
    try:
        found = PrefectServer(url).ask("GET", f"/deployments/name/{deployment}", missing=None)
    except RetrainError as error:
        log.warning("no link to the form %s: %s", deployment, error.message)
        return None
    filled_in = quote(json.dumps(parameters))
    return f"{page}/deployments/deployment/{found['id']}/run?parameters={filled_in}" if found else None


class PrefectServer:
    """One Prefect server. Every method raises Unreachable when it does not answer, and RetrainError when it refuses."""

    def __init__(self, url: str, *, auth: str | None = None) -> None:
        import httpx

        self.url = url.rstrip("/")
        auth = auth or prefect_api_auth()
        user, _, password = (auth or "").partition(":")
        # No keep-alive: none is left open when a server restarts or a process ends. trust_env: no proxy on loopback.
        self._client = httpx.Client(
            base_url=self.url,
            timeout=90,  # a server on SQLite waits up to 60 s for a writer before it answers "busy"
            auth=(user, password) if auth else None,
            trust_env="127.0.0.1" not in self.url,
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    def ask(self, method: str, path: str, body: Any = None, *, missing: Any = ...) -> Any:
        """Return the JSON response to one request; ``missing``, where given, for a 404."""
        import httpx

        try:
            for wait in (*_WAITS, None):
                answer = self._client.request(method, path, json=body)
                if answer.status_code not in _BUSY or wait is None:
                    break
                time.sleep(wait)
        except httpx.TransportError as error:
            raise Unreachable(
                f"the Prefect server at {self.url} does not answer: {error}",
                "start one (`retrain up`), or correct PREFECT_API_URL",
            ) from error
        if answer.status_code == httpx.codes.NOT_FOUND and missing is not ...:
            return missing
        if answer.is_error:
            raise RetrainError(
                f"the Prefect server at {self.url} refused {method} {path}: {answer.status_code} {answer.text[:500]}",
                "PREFECT_API_AUTH_STRING names user:password" if answer.status_code == httpx.codes.UNAUTHORIZED else "",
            )
        return answer.json() if answer.content else None

    def healthy(self) -> bool:
        """Return whether the server answers."""
        try:
            return self.ask("GET", "/health") is True
        except RetrainError:
            return False

    def ensure_pool(self, name: str, limit: int | None) -> None:
        """Create or update a process work pool that runs ``limit`` runs at once (None: any number)."""
        pool = self.ask("GET", f"/work_pools/{name}", missing=None)
        if pool is None:
            workers = self.ask("GET", "/collections/views/aggregate-worker-metadata")
            template = workers["prefect"]["process"]["default_base_job_configuration"]
            body = {"name": name, "type": "process", "base_job_template": template, "concurrency_limit": limit}
            self.ask("POST", "/work_pools/", body)
        elif pool["concurrency_limit"] != limit:
            self.ask("PATCH", f"/work_pools/{name}", {"concurrency_limit": limit})

    def has_worker(self, pool: str) -> bool:
        """Return whether a worker of a pool is online."""
        workers = self.ask("POST", f"/work_pools/{pool}/workers/filter", {})
        return any(worker["status"] == "ONLINE" for worker in workers)

    def deployments(self) -> dict[str, Json]:
        """Return all deployments by their full name, ``flow/deployment``."""
        flows = {flow["id"]: flow["name"] for flow in self._pages("/flows/filter")}
        return {f"{flows[each['flow_id']]}/{each['name']}": each for each in self._pages("/deployments/filter")}

    def deployment(self, name: str) -> Json:
        """Return the deployment called ``flow/deployment``."""
        deployment = self.ask("GET", f"/deployments/name/{name}", missing=None)
        if deployment is None:
            raise RetrainError(f"{self.url} has no deployment {name}", "`retrain up` or `make deploy` registers it")
        return dict(deployment)

    def create_run(
        self,
        deployment: str,
        *,
        key: str | None = None,
        parameters: Json | None = None,
        at: datetime | None = None,
        tags: Iterable[str] = (),
    ) -> Json:
        """Create a run of a deployment and return it, or the one that was created with the same ``key``."""
        state: Json = {"type": "SCHEDULED", "name": "Scheduled"}
        if at is not None:
            state["state_details"] = {"scheduled_time": at.isoformat()}
        body = {"state": state, "parameters": parameters or {}, "idempotency_key": key, "tags": list(tags)}
        return dict(self.ask("POST", f"/deployments/{self.deployment(deployment)['id']}/create_flow_run", body))

    def run(self, id_: str) -> Json:
        """Return one run."""
        return dict(self.ask("GET", f"/flow_runs/{id_}"))

    def runs(
        self,
        *,
        deployment: str | None = None,
        states: Iterable[str] = (),
        tags: Iterable[str] = (),
        key: str | None = None,
        limit: int = 200,
    ) -> list[Json]:
        """Return the runs that match all given conditions, newest first."""
        where: Json = {}
        if states := list(states):
            where["state"] = {"type": {"any_": states}}
        if tags := list(tags):
            where["tags"] = {"all_": tags}
        if key is not None:
            where["idempotency_key"] = {"any_": [key]}
        if deployment is not None:
            where["deployment_id"] = {"any_": [self.deployment(deployment)["id"]]}
        body = {"flow_runs": where, "sort": "EXPECTED_START_TIME_DESC", "limit": limit}
        return list(self.ask("POST", "/flow_runs/filter", body))

    def set_state(self, run: str, type_: str, name: str, message: str, *, force: bool = False) -> str:
        """Set a run's state, with ``force`` even after a final one; return the type of the state it has then."""
        state = {"type": type_, "name": name, "message": message}
        answer = self.ask("POST", f"/flow_runs/{run}/set_state", {"state": state, "force": force})
        return str((answer.get("state") or {}).get("type"))

    def interrupt_runs(self, pools: Iterable[str], why: str) -> list[Json]:
        """Mark all live runs of the pools as crashed; only for use where none can really be running."""
        body = {"flow_runs": {"state": {"type": {"any_": list(ALIVE)}}}, "work_pools": {"name": {"any_": list(pools)}}}
        runs = list(self.ask("POST", "/flow_runs/filter", body))
        for run in runs:
            self.set_state(run["id"], "CRASHED", INTERRUPTED, why, force=True)
            log.info("run %s was interrupted: %s", run["name"], why)
        return runs

    def emit(self, event: str, resource: Json, payload: Json | None = None, *, at: datetime | None = None) -> None:
        """Send the server an event that occurred now, or at another time."""
        occurred = (at or datetime.now(UTC)).isoformat()
        body = {"id": str(uuid.uuid4()), "occurred": occurred, "event": event, "resource": resource}
        self.ask("POST", "/events", [{**body, "payload": payload or {}}])

    def _pages(self, path: str) -> list[Json]:
        items: list[Json] = []
        while len(page := self.ask("POST", path, {"limit": 200, "offset": len(items)})) == 200:
            items += page
        return [*items, *page]
