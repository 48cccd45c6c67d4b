"""Prefect's server, asked over its own HTTP interface: pools, deployments, runs. Needs no Prefect in this process."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from infra.environment import prefect_api_auth
from validation.errors import RetrainError, Unreachable

log = logging.getLogger(__name__)

Json = dict[str, Any]
ALIVE = ("PENDING", "RUNNING", "CANCELLING")
# A server on SQLite says "unavailable" while somebody else is writing.
_BUSY = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
# What a run is called that ended because its machine was stopped: the night is started again.
INTERRUPTED = "Interrupted"


class PrefectServer:
    """One Prefect server.

    Every method raises Unreachable when it does not answer, and RetrainError when it refuses.
    """

    def __init__(self, url: str, *, auth: str | None = None) -> None:
        import httpx

        self.url = url.rstrip("/")
        auth = auth or prefect_api_auth()
        user, _, password = (auth or "").partition(":")
        # No connection is kept: a server that was started again, and the end of a process, find none open.
        # trust_env: a proxy of the surroundings has no business on loopback, and others are Prefect's to configure.
        self._client = httpx.Client(
            base_url=self.url,
            # Longer than a server on SQLite waits for whoever is writing (60 s): then it answers, if only "busy".
            timeout=90,
            auth=(user, password) if auth else None,
            trust_env="127.0.0.1" not in self.url,
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    def ask(self, method: str, path: str, body: Any = None, *, missing: Any = ...) -> Any:
        """Return the JSON answer to one request; ``missing``, where given, in place of a 404."""
        import httpx

        try:
            answer = self._client.request(method, path, json=body)
            for wait in _BUSY:
                if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                    break
                time.sleep(wait)
                answer = self._client.request(method, path, json=body)
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
        """Let there be a work pool of processes, with room for ``limit`` runs at once (None: any number)."""
        pool = self.ask("GET", f"/work_pools/{name}", missing=None)
        if pool is None:
            known = self.ask("GET", "/collections/views/aggregate-worker-metadata")
            template = known["prefect"]["process"]["default_base_job_configuration"]
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
        return {f"{flows[found['flow_id']]}/{found['name']}": found for found in self._pages("/deployments/filter")}

    def deployment(self, name: str) -> Json:
        """Return the deployment called ``flow/deployment``."""
        found = self.ask("GET", f"/deployments/name/{name}", missing=None)
        if found is None:
            raise RetrainError(f"{self.url} has no deployment {name}", "`retrain up` or `make deploy` registers it")
        return dict(found)

    def create_run(
        self,
        deployment: str,
        *,
        key: str | None = None,
        parameters: Json | None = None,
        at: datetime | None = None,
        tags: Iterable[str] = (),
    ) -> Json:
        """Return a new run of a deployment, or the one that was created with the same ``key``."""
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
        """Return runs, the newest first, that are all of what is given."""
        wanted: Json = {}
        if states := list(states):
            wanted["state"] = {"type": {"any_": states}}
        if tags := list(tags):
            wanted["tags"] = {"all_": tags}
        if key is not None:
            wanted["idempotency_key"] = {"any_": [key]}
        body: Json = {"flow_runs": wanted, "sort": "EXPECTED_START_TIME_DESC", "limit": limit}
        if deployment is not None:
            wanted["deployment_id"] = {"any_": [self.deployment(deployment)["id"]]}
        return list(self.ask("POST", "/flow_runs/filter", body))

    def set_state(self, run: str, type_: str, name: str, message: str, *, force: bool = False) -> str:
        """Bring a run into a state, ``force`` even out of a final one; return the state that it has then."""
        state = {"type": type_, "name": name, "message": message}
        answer = self.ask("POST", f"/flow_runs/{run}/set_state", {"state": state, "force": force})
        return str((answer.get("state") or {}).get("type"))

    def interrupt_runs(self, pools: Iterable[str], why: str) -> list[Json]:
        """Mark all runs of the pools that still count as alive as crashed; only where nothing can be running."""
        body = {"flow_runs": {"state": {"type": {"any_": list(ALIVE)}}}, "work_pools": {"name": {"any_": list(pools)}}}
        found = list(self.ask("POST", "/flow_runs/filter", body))
        for run in found:
            self.set_state(run["id"], "CRASHED", INTERRUPTED, why, force=True)
            log.info("run %s was interrupted: %s", run["name"], why)
        return found

    def emit(self, event: str, resource: Json, payload: Json | None = None, *, at: datetime | None = None) -> None:
        """Tell the server that something happened, now or at another moment."""
        told = {
            "id": str(uuid.uuid4()),
            "occurred": (at or datetime.now(UTC)).isoformat(),
            "event": event,
            "resource": resource,
            "payload": payload or {},
        }
        self.ask("POST", "/events", [told])

    def _pages(self, path: str) -> list[Json]:
        found: list[Json] = []
        while True:
            page = self.ask("POST", path, {"limit": 200, "offset": len(found)})
            found.extend(page)
            if len(page) < 200:
                return found
