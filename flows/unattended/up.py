"""``retrain up``: everything that runs unattended, on one machine, with one command.

A Prefect server (on loopback unless told otherwise, and then with a password), the work pools ``cpu`` and ``gpu``, a
worker for each, the deployments with their schedules, the alerts, and the bridge from a queue if one is set. All of it
ends with this process, however it ends.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import time

from flows.unattended.deploy import deploy, ensure_pools
from infra.environment import CODE_ROOT, prefect_api_auth, prefect_api_url
from infra.prefect_api import INTERRUPTED, PrefectServer
from infra.processes.gpus import gpus
from infra.processes.supervisor import Supervisor
from infra.settings.groups import UpSettings, is_loopback
from infra.settings.settings import Settings, secret_value
from validation.errors import RetrainError, UsageError
from validation.redaction import mask

log = logging.getLogger(__name__)

NIGHTLY = "retrain/nightly"
SERVER, BRIDGE = "prefect-server", "bridge"
POOLS = ("cpu", "gpu")
# Migrating a new database takes some 5 s here; a loaded machine takes several times that.
START_SECONDS = 180.0
# Kept in memory, the slot of a running night is gone when the server is started again, and Prefect ends such a night.
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
            refuse_open_server(settings.up, self.auth)
        self.server = PrefectServer(named or settings.up.url, auth=self.auth if self.own_server else None)
        self.services = Supervisor(settings.home / "logs")
        self.slots = 0
        self.server_is_up = False

    def start(self) -> None:
        """Start everything and check each part.

        Raises:
            RetrainError: when a part does not start, by its name and with its log.
        """
        if self.own_server:
            self._start_server()
            self.server.interrupt_runs(POOLS, STOPPED)
        self.slots = ensure_pools(self.server, self.settings)
        for pool in POOLS:
            arguments = ["prefect", "worker", "start", "--pool", pool, "--name", f"{pool}-{socket.gethostname()}"]
            self.services.start(_worker(pool), arguments, self._worker_environment())
        deploy(self.server, self.settings, self._login())
        if self.settings.events.queue:
            environment = {**os.environ, "PREFECT_API_URL": self.server.url, **self._login()}
            self.services.start(BRIDGE, ["flows.cli", "notify", "--listen"], environment)
        self._check()
        if self.own_server:
            self._go_on()

    def addresses(self) -> dict[str, str]:
        """Return where a person finds what, by name."""
        settings = self.settings
        registry = mask(settings.registry.get_secret_value())
        page = f"mlflow ui --backend-store-uri {registry}" if "://" in registry and "http" not in registry else registry
        return {
            "prefect": self.server.url.removesuffix("/api"),
            "mlflow": page,
            "reports": str(settings.home / "reports"),
            "logs": str(settings.home / "logs"),
            "gpu_slots": str(self.slots),
            "gpus": ", ".join(gpus()) or "none: trainings run on the CPU",
        }

    def watch(self) -> None:
        """Keep everything running until interrupted."""
        while True:
            time.sleep(1.0)
            self.services.supervise_once()

    def stop(self) -> None:
        """End everything, the server last, since it is still told what was interrupted."""
        self.services.stop([*map(_worker, POOLS), BRIDGE], grace=3.0)
        self.services.end_all(but=[SERVER])
        if self.server_is_up:
            # Only ever on a server of our own: on another's, the port's owner say, other people's runs are alive.
            try:
                self.server.interrupt_runs(POOLS, STOPPED)
            except RetrainError as error:
                log.warning("%s", error)
        self.services.stop([SERVER], grace=10.0)
        self.services.close()

    def _start_server(self) -> None:
        host, port = self.settings.up.host, self.settings.up.port
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            # As the server itself does: a connection of the last one that is still being closed is no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise UsageError(
                        f"cannot listen at {host} port {port}: {error.strerror}", "see RETRAIN_UP__HOST"
                    ) from None
                raise UsageError(
                    f"port {port} is taken",
                    "by another Prefect server? set PREFECT_API_URL to use it, or RETRAIN_UP__PORT to another port",
                ) from None
        arguments = ["prefect", "server", "start", "--host", host, "--port", str(port)]
        service = self.services.start(SERVER, arguments, self._server_environment())
        self.services.wait(service, self.server.healthy, START_SECONDS)
        self.server_is_up = True

    def _server_environment(self) -> dict[str, str]:
        home = self.settings.home / "prefect"
        home.mkdir(parents=True, exist_ok=True)
        told = {"PREFECT_SERVER_API_AUTH_STRING": self.auth} if self.auth else {}
        if not is_loopback(self.settings.up.host):
            # The page is read on other machines: there, the server is where the page came from.
            told["PREFECT_SERVER_UI_API_URL"] = "/api"
        return {
            **{name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"},
            **told,
            "PREFECT_API_DATABASE_CONNECTION_URL": self.settings.up.database.get_secret_value()
            or f"sqlite+aiosqlite:///{home / 'prefect.db'}",
            # The pages come from the package; they are made ready where this user may write.
            "PREFECT_UI_STATIC_DIRECTORY": str(home / "ui"),
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            **KEEPS_SLOTS,
            # httpx tells every address that it calls, the webhook's secret too, to whoever listens at level INFO.
            "PREFECT_LOGGING_ROOT_LEVEL": "WARNING",
            "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        }

    def _login(self) -> dict[str, str]:
        """What a client of the server has to know besides its address."""
        return {"PREFECT_API_AUTH_STRING": self.auth} if self.own_server and self.auth else {}

    def _worker_environment(self) -> dict[str, str]:
        environment = {
            # How long a run that is asked for by hand waits to be noticed.
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            # A worker that is gone is noticed after three of these.
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
        """Wait until there is a worker in each pool and every deployment can run."""
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            self.services.supervise_once()
            missing = [f"pool {pool}: no worker" for pool in POOLS if not self.server.has_worker(pool)]
            for name, found in self.server.deployments().items():
                if "malaria-retraining" in found["tags"] and found["status"] != "READY":
                    missing.append(f"deployment {name}: {found['status']}")
            if not missing:
                return
            time.sleep(0.3)
        raise RetrainError("not ready: " + "; ".join(missing), f"logs: {self.settings.home / 'logs'}")

    def _go_on(self) -> None:
        """Start the night again that was interrupted when the machine was stopped; once."""
        runs = self.server.runs(deployment=NIGHTLY, states=["RUNNING", "COMPLETED", "FAILED", "CRASHED"], limit=1)
        if runs and runs[0]["state_name"] == INTERRUPTED:
            run = self.server.create_run(
                NIGHTLY, key=f"again-{runs[0]['id']}", parameters=runs[0]["parameters"], tags=["again"]
            )
            log.info("the night %s was interrupted: it goes on as run %s", runs[0]["name"], run["name"])


def refuse_open_server(settings: UpSettings, auth: str | None) -> None:
    """Refuse to start a server that others can reach and that asks for no password.

    Raises:
        UsageError: whoever reaches Prefect's server can start runs, and read what they log.
    """
    if not is_loopback(settings.host) and not auth:
        raise UsageError(
            f"RETRAIN_UP__HOST is {settings.host}: others would reach Prefect's server, and it asks for no password",
            "set RETRAIN_UP__AUTH=user:password (or RETRAIN_UP__AUTH_FILE), or leave the host at 127.0.0.1",
        )


def _worker(pool: str) -> str:
    return f"worker-{pool}"
