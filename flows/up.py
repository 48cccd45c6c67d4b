"""``retrain up``: everything that runs unattended, on one machine, with one command.

A Prefect server on loopback, the work pools ``cpu`` and ``gpu``, a worker for each, the deployments with their
schedules, the alerts, and the bridge from a queue if one is set. All of it ends with this process, however it ends.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from types import FrameType

from flows.deploy import deploy, ensure_pools
from infra.devices import gpus
from infra.orchestration import INTERRUPTED, PrefectServer
from infra.services import ROOT, Services
from infra.settings import Settings, mask, prefect_api_url
from validation.errors import RetrainError, UsageError

log = logging.getLogger(__name__)

NIGHTLY = "retrain/nightly"
SERVER, BRIDGE = "prefect-server", "bridge"
POOLS = ("cpu", "gpu")
# Migrating a new database takes some 5 s here; a loaded machine takes several times that.
START_SECONDS = 180.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOPPED = "the machine was stopped in the middle of it"


class Machine:
    """What runs on this machine between ``start`` and ``stop``."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        named = prefect_api_url()
        self.own_server = named is None
        self.server = PrefectServer(named or f"http://127.0.0.1:{settings.up.port}/api")
        self.services = Services(settings.home / "logs")
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
        deploy(self.server, self.settings)
        if self.settings.events.queue:
            environment = {**os.environ, "PREFECT_API_URL": self.server.url}
            self.services.start(BRIDGE, ["flows.cli", "notify", "--listen"], environment)
        self._check()
        if self.own_server:
            self._go_on()

    def addresses(self) -> dict[str, str]:
        """Return where a person finds what, by name."""
        settings = self.settings
        registry = settings.registry
        page = f"mlflow ui --backend-store-uri {registry}" if "://" in registry and "http" not in registry else registry
        return {
            "prefect": self.server.url.removesuffix("/api"),
            "mlflow": mask(page),
            "reports": str(settings.home / "reports"),
            "logs": str(settings.home / "logs"),
            "gpu_slots": str(self.slots),
            "gpus": ", ".join(gpus()) or "none: trainings run on the CPU",
        }

    def watch(self) -> None:
        """Keep everything running until interrupted."""
        while True:
            time.sleep(1.0)
            self.services.look()

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
        port = self.settings.up.port
        with socket.socket() as probe:
            # As the server itself does: a connection of the last one that is still being closed is no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                raise UsageError(
                    f"port {port} is taken",
                    "by another Prefect server? set PREFECT_API_URL to use it, or RETRAIN_UP__PORT to another port",
                ) from None
        arguments = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        service = self.services.start(SERVER, arguments, self._server_environment())
        self.services.wait(service, self.server.healthy, START_SECONDS)
        self.server_is_up = True

    def _server_environment(self) -> dict[str, str]:
        home = self.settings.home / "prefect"
        home.mkdir(parents=True, exist_ok=True)
        return {
            **{name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"},
            "PREFECT_API_DATABASE_CONNECTION_URL": self.settings.up.database
            or f"sqlite+aiosqlite:///{home / 'prefect.db'}",
            # The pages come from the package; they are made ready where this user may write.
            "PREFECT_UI_STATIC_DIRECTORY": str(home / "ui"),
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            # httpx tells every address that it calls, the webhook's secret too, to whoever listens at level INFO.
            "PREFECT_LOGGING_ROOT_LEVEL": "WARNING",
            "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        }

    def _worker_environment(self) -> dict[str, str]:
        environment = {
            # How long a run that is asked for by hand waits to be noticed.
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            # A worker that is gone is noticed after three of these.
            "PREFECT_WORKER_HEARTBEAT_SECONDS": "10",
            **os.environ,
            "PREFECT_API_URL": self.server.url,
            "MALARIA_CODE": str(ROOT),
        }
        if self.settings.up.train_on_workers:
            environment["RETRAIN_TRAINING__WHERE"] = "deployment"
        return environment

    def _check(self) -> None:
        """Wait until there is a worker in each pool and every deployment can run."""
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            self.services.look()
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


def interrupt_on_signals() -> None:
    """Let SIGTERM and a closed terminal do what Ctrl-C does, while starting too."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt

    for number in SIGNALS:
        signal.signal(number, interrupt)


def ignore_signals() -> None:
    """Do not be interrupted again."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _worker(pool: str) -> str:
    return f"worker-{pool}"
