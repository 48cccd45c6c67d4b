"""A Prefect server for a run: the one that is named, the one of ``retrain up``, or a temporary one on loopback."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from infra.environment import prefect_api_url
from infra.local.up_lock import machine_url
from infra.settings.settings import Settings, secret_value
from validation.errors import RetrainError

log = logging.getLogger(__name__)

# Loading Prefect's server takes about 5 s here, 10 s at its first start; a loaded machine takes several times that.
SERVER_START_SECONDS = 180.0


@contextmanager
def prefect_server(settings: Settings) -> Iterator[str]:
    """Give Prefect a server and yield its address.

    It is the one that PREFECT_API_URL names, the one of ``retrain up`` where that runs on this home folder, or a
    temporary one on loopback.

    Prefect would start one by itself, but leaves it behind when its parent is killed; this one dies with us.

    Raises:
        RetrainError: when the temporary server does not start.
    """
    if (url := prefect_api_url()) is not None:
        yield url
        return
    if (url := machine_url(settings)) is not None:
        told = {"PREFECT_API_URL": url}
        if (auth := secret_value(settings.up.auth)) is not None:
            told["PREFECT_API_AUTH_STRING"] = auth
        os.environ.update(told)
        try:
            yield url
        finally:
            _send_what_is_queued()
            for name in told:
                del os.environ[name]
        return
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    settings.home.mkdir(parents=True, exist_ok=True)
    log_path = settings.home / "prefect-server.log"
    log.info("starting a temporary Prefect server (its log: %s)", log_path)
    with log_path.open("wb") as output:
        # A session of its own: Ctrl-C is for the night, which still has to tell the server how it ended.
        server = subprocess.Popen(
            _server_command(port), stdout=output, stderr=output, env=_server_environment(), start_new_session=True
        )
    os.environ["PREFECT_API_URL"] = url
    try:
        _wait_until_healthy(server, url, str(log_path))
        yield url
    finally:
        _send_what_is_queued()
        del os.environ["PREFECT_API_URL"]
        server.terminate()
        try:
            server.wait(timeout=10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _send_what_is_queued() -> None:
    """Let Prefect send its last log lines and events while there is a server: later it would try for a minute."""
    if "prefect" not in sys.modules:
        return
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=10)


def _server_command(port: int) -> list[str]:
    tied = [sys.executable, "-m", "infra.processes.parent", str(os.getpid())]
    uvicorn = ["uvicorn", "--factory", "prefect.server.api.server:create_app"]
    return [*tied, *uvicorn, "--host", "127.0.0.1", "--port", str(port), "--log-level", "error", "--lifespan", "on"]


def _server_environment() -> dict[str, str]:
    # What Prefect's own temporary server is told: no pages, and nothing that belongs to a permanent one.
    return {**os.environ, "PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}


def _wait_until_healthy(server: subprocess.Popen[bytes], url: str, log_path: str) -> None:
    import httpx

    until = time.monotonic() + SERVER_START_SECONDS
    while time.monotonic() < until and server.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise RetrainError(
        "the temporary Prefect server did not start", f"see {log_path}, or set PREFECT_API_URL to a server of yours"
    )


def free_port() -> int:
    """Return a port of loopback that is free now; chosen at random, so that two who ask at once seldom meet.

    It lies below those that systems give to whoever connects, or one of these could take it before it is used.

    Raises:
        RetrainError: when none is found.
    """
    for _ in range(50):
        port = 16_384 + secrets.randbelow(16_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RetrainError("no free port on loopback for a temporary Prefect server", "set PREFECT_API_URL")
