"""The surroundings of a run: libraries told to keep to the home folder and to call nobody, and a server for Prefect.

Must be called before Prefect, MLflow or Great Expectations are imported, since they read these names at import.
"""

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

from infra.privacy import keep_files_private, keep_secrets_out_of_logs, make_private
from infra.settings import Settings, prefect_api_url, secret_value
from infra.up_lock import machine_url
from validation.errors import RetrainError

log = logging.getLogger(__name__)

# Loading Prefect's server takes about 5 s here, 10 s at its first start; a loaded machine takes several times that.
SERVER_START_SECONDS = 180.0


def prepare_environment(settings: Settings) -> None:
    """Keep the libraries' files under the home folder, switch their telemetry off, and quieten them.

    What is set already is left as it is: a deployment knows better than a default. From here on files are not for
    others on this machine, and no secret is logged.
    """
    keep_files_private()
    keep_secrets_out_of_logs()
    make_private(settings.home)
    defaults = {
        "DO_NOT_TRACK": "1",
        "GX_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PREFECT_HOME": str(settings.home / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # Everything below the flows uses plain logging; this carries it to Prefect's pages.
        "PREFECT_LOGGING_EXTRA_LOGGERS": "flows,tasks,infra,validation",
        # Prefect alone would keep every run for ever.
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(int(settings.prune.runs_days * 86_400)),
        "MPLCONFIGDIR": str(settings.home / "cache" / "matplotlib"),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    for floor in ("flows", "tasks", "infra", "validation"):
        logging.getLogger(floor).setLevel(logging.INFO)
    # It logs whole addresses, and a presigned one is a key to what it names.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    _outlive_the_reader()


def _outlive_the_reader() -> None:
    """Go on in silence when whoever read this process's output is gone: a worker that was killed, a closed terminal.

    Prefect writes its log through rich, which ends the process then (exit code 1, a night that is Crashed).
    """
    from rich.console import Console

    def go_silent(console: Console) -> None:
        console.quiet = True
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, console.file.fileno())
        os.close(nothing)

    Console.on_broken_pipe = go_silent  # type: ignore[assignment, method-assign]


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
    tied = [sys.executable, "-m", "infra.processes", str(os.getpid())]
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
