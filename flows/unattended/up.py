"""``retrain up``: everything that runs unattended, on one machine, with one command.

A Prefect server (on loopback, or on another address with a password), the work pools ``cpu`` and ``gpu``, a worker for
each, the deployments with their schedules, the alerts, the site of all reports, and the bridge from a queue if one is
set. All of it ends with this process, however it ends.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import time

from flows.unattended.deploy import TAG, deploy, ensure_pools
from infra.environment import CODE_ROOT, prefect_api_auth, prefect_api_url
from infra.inherited import of_a_server
from infra.prefect_api import INTERRUPTED, PrefectServer
from infra.processes.gpus import gpus
from infra.processes.supervisor import Supervisor
from infra.settings.groups import refuse_open
from infra.settings.settings import Settings, secret_value
from validation.errors import RetrainError, UsageError
from validation.redaction import mask

log = logging.getLogger(__name__)

NIGHTLY = "retrain/nightly"
SERVER, BRIDGE, SITE = "prefect-server", "bridge", "site"
POOLS = ("cpu", "gpu")
# Migrating a new database takes about 5 s, on a loaded machine several times that.
START_SECONDS = 180.0
# Prefect's scheduler looks for new deployments every 5 s; with a paused schedule there is no run to wait for.
SCHEDULED_SECONDS = 10.0
# In memory, the slot of a running night is lost when the server restarts, and Prefect ends that night.
KEEPS_SLOTS = {"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem"}
STOPPED = "the machine was stopped in the middle of it"


class LocalDeployment:
    """What runs on this machine between ``start`` and ``stop``."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        named = prefect_api_url()
        self.own_server = named is None
        self.auth = secret_value(settings.up.auth) or prefect_api_auth()
        if self.own_server:
            refuse_open("RETRAIN_UP__HOST", settings.up.host, self.auth)
        if settings.site.port:
            refuse_open("RETRAIN_SITE__HOST", settings.site.host, secret_value(settings.up.auth))
        self.server = PrefectServer(named or settings.up.url, auth=self.auth if self.own_server else None)
        self.services = Supervisor(settings.home / "logs")
        self.slots = 0
        self.server_is_up = False

    def start(self) -> None:
        """Start everything and check each part.

        Raises:
            RetrainError: when a part does not start, with its name and its log.
        """
        site = self.settings.site
        if site.port and (error := why_not_listen(site.host, site.port)):
            raise UsageError(
                f"cannot serve the reports at {site.host} port {site.port}: {error.strerror}",
                "change RETRAIN_SITE__HOST or RETRAIN_SITE__PORT; with port 0 they are not served",
            )
        if self.own_server:
            log.info("starting Prefect's server at %s", self.server.url.removesuffix("/api"))
            self._start_server()
            self.server.interrupt_runs(POOLS, STOPPED)
        log.info("starting workers for %s; registering deployments, schedules and alerts", " and ".join(POOLS))
        self.slots = ensure_pools(self.server, self.settings)
        for pool in POOLS:
            arguments = ["prefect", "worker", "start", "--pool", pool, "--name", f"{pool}-{socket.gethostname()}"]
            self.services.start(_worker(pool), arguments, self._worker_environment())
        deploy(self.server, self.settings, self._login())
        if self.settings.events.queue:
            environment = {**os.environ, "PREFECT_API_URL": self.server.url, **self._login()}
            self.services.start(BRIDGE, ["flows.cli", "notify", "--listen"], environment)
        if self.settings.site.port:
            # Not waited for: it reads the store, which may answer later; the other parts start without it too.
            self.services.start(SITE, ["flows.cli", "site"], dict(os.environ))
        self._check()
        if self.own_server:
            self._resume_night()

    def addresses(self) -> dict[str, str]:
        """Return where to find everything, by name."""
        settings = self.settings
        registry = mask(settings.registry.get_secret_value())
        page = f"mlflow ui --backend-store-uri {registry}" if "://" in registry and "http" not in registry else registry
        return {
            "prefect": self.server.url.removesuffix("/api"),
            "mlflow": page,
            "site": f"{settings.site.base}/" if settings.site.base else "not served (RETRAIN_SITE__PORT is 0)",
            "reports": str(settings.home / "reports"),
            "logs": str(settings.home / "logs"),
            "next_night": self.next_night(),
            "gpu_slots": str(self.slots),
            "gpus": f"{', '.join(gpus()) or 'none'} (`retrain devices` says what each CNN trains on)",
        }

    def next_night(self) -> str:
        """Return when the next night begins, or that none is scheduled (its schedule may be paused)."""
        until = time.monotonic() + SCHEDULED_SECONDS
        while not (runs := self.server.runs(deployment=NIGHTLY, states=["SCHEDULED"])) and time.monotonic() < until:
            time.sleep(0.5)
        first = min((run["expected_start_time"] for run in runs), default="")
        return f"{first[:16].replace('T', ' ')} UTC" if first else "none is scheduled"

    def watch(self) -> None:
        """Keep everything running until interrupted."""
        while True:
            time.sleep(1.0)
            self.services.supervise_once()

    def stop(self) -> None:
        """Stop everything, the server last, since the interrupted runs are recorded on it."""
        self.services.stop([*map(_worker, POOLS), BRIDGE, SITE], grace=3.0)
        self.services.end_all(but=[SERVER])
        if self.server_is_up:
            # Only on the server started here: on any other, other machines' runs are alive.
            try:
                self.server.interrupt_runs(POOLS, STOPPED)
            except RetrainError as error:
                log.warning("%s", error)
        self.services.stop([SERVER], grace=10.0)
        self.services.close()

    def _start_server(self) -> None:
        host, port = self.settings.up.host, self.settings.up.port
        if error := why_not_listen(host, port):
            problem, hint = f"cannot listen at {host} port {port}: {error.strerror}", "see RETRAIN_UP__HOST"
            if error.errno == errno.EADDRINUSE:
                problem = f"port {port} is taken"
                hint = "by another Prefect server? set PREFECT_API_URL to use it, or change RETRAIN_UP__PORT"
            raise UsageError(problem, hint)
        arguments = ["prefect", "server", "start", "--host", host, "--port", str(port)]
        service = self.services.start(SERVER, arguments, self._server_environment())
        self.services.wait(service, self.server.healthy, START_SECONDS)
        self.server_is_up = True

    def _server_environment(self) -> dict[str, str]:
        home = self.settings.home / "prefect"
        home.mkdir(parents=True, exist_ok=True)
        return {
            **of_a_server(os.environ),
            **({"PREFECT_SERVER_API_AUTH_STRING": self.auth} if self.auth else {}),
            # The page calls the address that it was loaded from: another port, another host, a tunnel to either.
            "PREFECT_SERVER_UI_API_URL": "/api",
            "PREFECT_API_DATABASE_CONNECTION_URL": self.settings.up.database.get_secret_value()
            or f"sqlite+aiosqlite:///{home / 'prefect.db'}",
            # The installed package may be read-only; Prefect prepares its pages here.
            "PREFECT_UI_STATIC_DIRECTORY": str(home / "ui"),
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            **KEEPS_SLOTS,
            # At level INFO httpx logs every address that it calls, the webhook's secret too.
            "PREFECT_LOGGING_ROOT_LEVEL": "WARNING",
            "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        }

    def _login(self) -> dict[str, str]:
        """Return the environment that a client of the server needs besides its address."""
        return {"PREFECT_API_AUTH_STRING": self.auth} if self.own_server and self.auth else {}

    def _worker_environment(self) -> dict[str, str]:
        environment = {
            # How long a run that was started by hand waits for a worker.
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            # A lost worker is noticed after three of these.
            "PREFECT_WORKER_HEARTBEAT_SECONDS": "10",
            **os.environ,
            **self._login(),
            "PREFECT_API_URL": self.server.url,
            "MALARIA_CODE": str(CODE_ROOT),
        }
        if self.settings.up.train_on_workers:
            environment["RETRAIN_TRAINING__WHERE"] = "deployment"
        return environment

    def _check(self) -> None:
        """Wait until each pool has a worker and every deployment is ready."""
        until, waited = time.monotonic() + START_SECONDS, [""]
        while time.monotonic() < until:
            self.services.supervise_once()
            missing = [f"pool {pool}: no worker" for pool in POOLS if not self.server.has_worker(pool)]
            for name, deployment in self.server.deployments().items():
                if TAG in deployment["tags"] and deployment["status"] != "READY":
                    missing.append(f"deployment {name}: {deployment['status']}")
            if not missing:
                return
            if missing != waited:
                log.info("waiting for %s", "; ".join(missing))
                waited = missing
            time.sleep(0.3)
        raise RetrainError("not ready: " + "; ".join(missing), f"logs: {self.settings.home / 'logs'}")

    def _resume_night(self) -> None:
        """Start the night again that was interrupted when this command was stopped; once."""
        runs = self.server.runs(deployment=NIGHTLY, states=["RUNNING", "COMPLETED", "FAILED", "CRASHED"], limit=1)
        if runs and runs[0]["state_name"] == INTERRUPTED:
            run = self.server.create_run(
                NIGHTLY, key=f"again-{runs[0]['id']}", parameters=runs[0]["parameters"], tags=["again"]
            )
            log.info("the night %s was interrupted: it resumes as run %s", runs[0]["name"], run["name"])


def why_not_listen(host: str, port: int) -> OSError | None:
    """Return why this machine cannot listen at a host and port, or None."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # As the server itself does, so that a connection still closing does not block the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error
    return None


def _worker(pool: str) -> str:
    return f"worker-{pool}"
