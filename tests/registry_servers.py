"""A private PostgreSQL and a real ``mlflow server`` for tests, on loopback, in temporary folders, gone afterwards."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[1]
SECONDS = 120


def free_port() -> int:
    """Return a port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _program(name: str) -> str:
    """Return a program of PostgreSQL's server, which Debian keeps off the path."""
    found = shutil.which(name) or next(
        (str(path) for path in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)), None
    )
    if found is None:
        pytest.skip(f"PostgreSQL's {name} is not installed (Debian: apt-get install -y postgresql, see .ci/services)")
    return found


@contextmanager
def postgres(database: str) -> Iterator[str]:
    """Start a cluster of its own with one empty database; yield the database's address."""
    initdb, server = _program("initdb"), _program("postgres")
    # PostgreSQL refuses to run as root.
    user = "postgres" if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    if user:
        shutil.chown(folder, user)
    data, port = folder / "data", free_port()
    groups: list[str | int] | None = [] if user else None
    process = None
    try:
        subprocess.run(
            [initdb, "-D", str(data), "-U", "mlflow", "-A", "trust", "--no-sync", "--no-locale", "-E", "UTF8"],
            cwd=folder, capture_output=True, check=True, user=user, group=user, extra_groups=groups,
        )  # fmt: skip
        options = {
            "fsync": "off",
            "full_page_writes": "off",
            "synchronous_commit": "off",
            "unix_socket_directories": "",
        }
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [server, "-D", str(data), "-h", "127.0.0.1", "-p", str(port)]
                + [f"--{name}={value}" for name, value in options.items()],
                cwd=folder, stdout=log, stderr=log, user=user, group=user, extra_groups=groups,
            )  # fmt: skip
        _create(database, port, process, folder / "log")
        # The driver is named: SQLAlchemy means another one by "postgresql".
        yield f"postgresql+psycopg2://mlflow:s3cret@127.0.0.1:{port}/{database}"
    finally:
        if process is not None:
            process.send_signal(2)  # SIGINT: PostgreSQL's word for "now, and in good order"
            process.wait(timeout=60)
        shutil.rmtree(folder)


def _create(database: str, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    command = [_program("createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", "mlflow", database]
    until = time.monotonic() + SECONDS
    while subprocess.run(command, capture_output=True, check=False).returncode:
        if time.monotonic() > until or process.poll() is not None:
            raise AssertionError(f"PostgreSQL did not start: {log.read_text()}")
        time.sleep(0.1)


@contextmanager
def mlflow_server(backend: str, artifacts: str, s3_endpoint: str, log: Path) -> Iterator[str]:
    """Start MLflow's server over a database and a bucket; yield its address. It is what hands files on."""
    port = free_port()
    environment = {
        **os.environ,
        "MLFLOW_S3_ENDPOINT_URL": s3_endpoint,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    arguments = ["--backend-store-uri", backend, "--artifacts-destination", artifacts, "--workers", "1"]
    tied = [sys.executable, "-W", "ignore", "-m", "infra.processes", str(os.getpid())]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*tied, "mlflow", "server", *arguments, "--host", "127.0.0.1", "--port", str(port)],
            cwd=log.parent, env=environment, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(url, process, log)
        yield url
    finally:
        # With its workers, which are of its own session. It holds nothing that is not in the database.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError(f"mlflow server did not start: {log.read_text()[-3000:]}")
