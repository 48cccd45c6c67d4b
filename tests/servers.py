"""Servers that tests start for themselves on loopback, in temporary folders, gone afterwards: PostgreSQL, MLflow."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import httpx
import psycopg2  # type: ignore[import-untyped]
import pytest

from infra.prefect_server import free_port
from tests import ROOT

# They are there within seconds; this only ends what hangs, and a machine may be very busy elsewhere.
SECONDS = 900
OPTIONS = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "unix_socket_directories": ""}


def program(name: str) -> str:
    """Return a program of PostgreSQL's server, which Debian keeps off the path."""
    found = shutil.which(name) or next(
        (str(path) for path in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)), None
    )
    if found is None:
        pytest.skip(f"PostgreSQL's {name} is not installed (Debian: apt-get install -y postgresql, see .ci/services)")
    return found


@contextmanager
def postgres_server() -> Iterator[str]:
    """Start a PostgreSQL cluster of its own; yield its address, ``postgresql://user:password@host:port``."""
    initdb, server = program("initdb"), program("postgres")
    # PostgreSQL refuses to run as root, and its owner cannot look into pytest's own folders.
    user = "postgres" if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    if user:
        shutil.chown(folder, user)
    data, log, port = folder / "data", folder / "log", free_port()
    groups: list[str | int] | None = [] if user else None
    process = None
    try:
        subprocess.run(
            [initdb, "-D", str(data), "-U", "malaria", "-A", "trust", "--no-sync", "--no-locale", "-E", "UTF8"],
            cwd=folder, capture_output=True, check=True, user=user, group=user, extra_groups=groups,
        )  # fmt: skip
        with log.open("wb") as output:
            process = subprocess.Popen(
                [server, "-D", str(data), "-h", "127.0.0.1", "-p", str(port)]
                + [f"--{name}={value}" for name, value in OPTIONS.items()],
                cwd=folder, stdout=output, stderr=output, user=user, group=user, extra_groups=groups,
            )  # fmt: skip
        url = f"postgresql://malaria:none@127.0.0.1:{port}"
        wait_for(lambda: _run(url, "SELECT 1"), psycopg2.OperationalError, process, log)
        yield url
    finally:
        if process is not None:
            process.send_signal(2)  # SIGINT: PostgreSQL's word for "now, and in good order"
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def with_tables(prefect_home: Path, database: Path) -> None:
    """Give a Prefect server's home folder the fixture ``prefect_database``: that takes it seconds to make."""
    prefect_home.mkdir(parents=True, exist_ok=True)
    shutil.copy(database, prefect_home / "prefect.db")


@contextmanager
def databases(server: str, *names: str) -> Iterator[None]:
    """Have empty databases on a server, and no longer than they are needed."""
    for name in names:
        _run(server, f'CREATE DATABASE "{name}"')
    try:
        yield
    finally:
        for name in names:
            _run(server, f'DROP DATABASE "{name}" WITH (FORCE)')


def _run(server: str, statement: str) -> bool:
    with closing(psycopg2.connect(f"{server}/postgres")) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
    return True


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
    tied = [sys.executable, "-W", "ignore", "-m", "infra.processes.parent", str(os.getpid())]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*tied, "mlflow", "server", *arguments, "--host", "127.0.0.1", "--port", str(port)],
            cwd=log.parent, env=environment, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(
            lambda: httpx.get(f"{url}/health", trust_env=False, timeout=120).is_success,
            httpx.TransportError,
            process,
            log,
        )
        yield url
    finally:
        # With its workers, which are of its own session. It holds nothing that is not in the database.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()


def wait_for(ready: Callable[[], bool], not_yet: type[Exception], process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a server answers; ``not_yet`` is what asking raises before."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until and process.poll() is None:
        with suppress(not_yet):
            if ready():
                return
        time.sleep(0.1)
    raise AssertionError(f"it did not start: {log.read_text(errors='replace')[-3000:]}")
