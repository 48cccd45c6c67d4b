"""The Prefect server of a run: the configured one, the one of ``retrain up``, or a temporary one on loopback."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from infra.environment import CODE_ROOT, environment_kept, prefect_api_url
from infra.inherited import of_a_server
from infra.local.up_lock import machine_url
from infra.settings.settings import Settings, secret_value
from validation.errors import RetrainError

log = logging.getLogger(__name__)

# Loading Prefect's server takes about 5 s, 10 s at its first start, and several times that on a loaded machine.
SERVER_START_SECONDS = 180.0


@contextmanager
def prefect_server(settings: Settings) -> Iterator[str]:
    """Point Prefect to a server and yield its address.

    It is the one that PREFECT_API_URL names, the one of ``retrain up`` where that runs on this home folder, or a
    temporary one. Prefect could start that itself, but leaves it running when its parent is killed.

    Raises:
        RetrainError: when the temporary server does not start.
    """
    if (url := prefect_api_url()) is not None:
        yield url
        return
    if (url := machine_url(settings)) is not None:
        variables = {"PREFECT_API_URL": url}
        if (auth := secret_value(settings.up.auth)) is not None:
            variables["PREFECT_API_AUTH_STRING"] = auth
        with _prefect_pointed_to(variables):
            yield url
        return
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    settings.home.mkdir(parents=True, exist_ok=True)
    log_path = settings.home / "prefect-server.log"
    log.info("starting a temporary Prefect server (its log: %s)", log_path)
    with log_path.open("wb") as output:
        # In its own session: Ctrl-C is for the night, which still has to report to the server how it ended.
        server = subprocess.Popen(
            _server_command(port), cwd=CODE_ROOT, env=_server_environment(), stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    try:
        with _prefect_pointed_to({"PREFECT_API_URL": url}):
            _wait_until_healthy(server, url, str(log_path))
            yield url
    finally:
        server.terminate()
        try:
            server.wait(timeout=10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@contextmanager
def _prefect_pointed_to(variables: dict[str, str]) -> Iterator[None]:
    with environment_kept(variables):
        os.environ.update(variables)
        try:
            yield
        finally:
            if "prefect" in sys.modules:  # send its last log lines and events now: later it would try for a minute
                from prefect.events.worker import EventsWorker
                from prefect.logging.handlers import APILogWorker

                for worker in (APILogWorker, EventsWorker):
                    worker.drain_all(timeout=10)


def _server_command(port: int) -> list[str]:
    uvicorn = ["uvicorn", "--factory", "prefect.server.api.server:create_app"]
    return [
        sys.executable,
        "-m",
        "infra.processes.parent",
        str(os.getpid()),
        *uvicorn,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--log-level",
        "error",
        "--lifespan",
        "on",
    ]


def _server_environment() -> dict[str, str]:
    # As Prefect's own temporary server: no pages, and no services of a permanent one.
    ephemeral = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    return {**of_a_server(os.environ), **ephemeral}


def _wait_until_healthy(server: subprocess.Popen[bytes], url: str, log_path: str) -> None:
    import httpx

    until = time.monotonic() + SERVER_START_SECONDS
    while time.monotonic() < until and server.poll() is None:
        with suppress(httpx.TransportError):
            if httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == httpx.codes.OK:
                return
        time.sleep(0.1)
    raise RetrainError(
        "the temporary Prefect server did not start", f"see {log_path}, or set PREFECT_API_URL to a server of yours"
    )


def free_port() -> int:
    """Return a free port of loopback, chosen at random, so that two callers at once rarely get the same.

    It is below the ephemeral ports, which an outgoing connection could take before the port is used.

    Raises:
        RetrainError: when none is found.
    """
    for _ in range(50):
        port = 16_384 + secrets.randbelow(16_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RetrainError("no free port on loopback for a temporary Prefect server", "set PREFECT_API_URL")
