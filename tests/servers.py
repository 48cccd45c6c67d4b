"""Servers that tests start for themselves on loopback, in temporary folders, gone afterwards.

PostgreSQL, MLflow, and Kubernetes' API server.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg2  # type: ignore[import-untyped]
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

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


@dataclass(frozen=True)
class Cluster:
    """Kubernetes' API server, without a scheduler, controllers and nodes: what it stores stays as it was sent."""

    programs: Path
    config: Path

    def environment(self) -> dict[str, str]:
        """Return the variables with which kubectl is found, and the server by it and by Prefect's worker."""
        found = {"PATH": f"{self.programs}:{os.environ['PATH']}", "KUBECONFIG": str(self.config)}
        return found | {"HOME": str(self.config.parent)}  # kubectl keeps there what it knows of a server

    def ask(self, *arguments: str) -> Any:
        """Return what kubectl prints as JSON."""
        command: list[str | Path] = [self.programs / "kubectl", *arguments, "--output=json"]
        done = subprocess.run(command, env=os.environ | self.environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def kubernetes_programs() -> Path:
    """Return a folder with the API server, its etcd and kubectl."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "malaria-retraining" / "kubernetes"
    folder = Path(os.environ.get("KUBEBUILDER_ASSETS") or cache)
    if missing := [name for name in ("kube-apiserver", "etcd", "kubectl") if not (folder / name).is_file()]:
        pytest.skip(
            f"no Kubernetes here: {', '.join(missing)} not in {folder}. `.ci/kubernetes {folder}` builds them on Debian"
            " in minutes; KUBEBUILDER_ASSETS names another folder"
        )
    return folder


@contextmanager
def kubernetes_server(folder: Path) -> Iterator[Cluster]:
    """Start Kubernetes' API server over an etcd of its own, with all its files in ``folder``."""
    programs = kubernetes_programs()
    store, port, token = f"http://127.0.0.1:{free_port()}", free_port(), secrets.token_hex()
    # It signs the tokens of service accounts with it, and does not start without.
    private = rsa.generate_private_key(65_537, 2_048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(private)
    (folder / "tokens.csv").write_text(f"{token},somebody,1,system:masters\n")
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "users": [{"name": "test", "user": {"token": token}}],
        "clusters": [
            {
                "name": "test",
                "cluster": {
                    "server": f"https://127.0.0.1:{port}",
                    "certificate-authority": str(folder / "apiserver.crt"),
                },
            }
        ],
    }
    (folder / "config").write_text(json.dumps(config))
    cluster = Cluster(programs, folder / "config")
    etcd = [f"--data-dir={folder / 'etcd'}", f"--listen-client-urls={store}", f"--advertise-client-urls={store}",
            "--listen-peer-urls=http://127.0.0.1:0"]  # fmt: skip
    server = [
        f"--etcd-servers={store}", "--bind-address=127.0.0.1", f"--secure-port={port}", f"--cert-dir={folder}",
        f"--token-auth-file={folder / 'tokens.csv'}", "--authorization-mode=RBAC", "--endpoint-reconciler-type=none",
        "--advertise-address=127.0.0.1",
        "--service-account-issuer=https://kubernetes.default.svc", "--service-cluster-ip-range=10.0.0.0/24",
        f"--service-account-key-file={folder / 'key.pem'}", f"--service-account-signing-key-file={folder / 'key.pem'}",
    ]  # fmt: skip
    with (folder / "log").open("wb") as output, ExitStack() as stack:
        for name, arguments in (("etcd", etcd), ("kube-apiserver", server)):
            process = subprocess.Popen(
                [programs / name, *arguments], cwd=folder, stdout=output, stderr=output, start_new_session=True
            )
            # Nothing of it outlives the folder.
            stack.callback(process.wait)
            stack.callback(process.kill)
        wait_for(lambda: bool(cluster.ask("get", "namespace", "default")), AssertionError, process, folder / "log")
        yield cluster


def wait_for(ready: Callable[[], bool], not_yet: type[Exception], process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a server answers; ``not_yet`` is what asking raises before."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until and process.poll() is None:
        with suppress(not_yet):
            if ready():
                return
        time.sleep(0.1)
    raise AssertionError(f"it did not start: {log.read_text(errors='replace')[-3000:]}")
