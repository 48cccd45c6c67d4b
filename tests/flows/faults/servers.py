"""PostgreSQL and MLflow's server, each of which can be killed and restarted on the same data."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from infra.prefect_server import free_port
from tests import ROOT
from tests.servers import program, wait_for

OPTIONS = {"fsync": "off", "full_page_writes": "off", "unix_socket_directories": "", "listen_addresses": "127.0.0.1"}


class Postgres:
    """A cluster with one database. It refuses to run as root, and cannot read pytest's folders."""

    def __init__(self, database: str) -> None:
        self._user = "postgres" if os.getuid() == 0 else None
        self._folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        if self._user:
            shutil.chown(self._folder, self._user)
        self._port = free_port()
        self.url = f"postgresql+psycopg2://mlflow@127.0.0.1:{self._port}/{database}"
        options = ["-U", "mlflow", "-A", "trust", "--no-sync", "--no-locale", "-E", "UTF8"]
        self._run([program("initdb"), "-D", str(self._folder / "data"), *options]).wait()
        self.start()
        create = [program("createdb"), "-h", "127.0.0.1", "-p", str(self._port), "-U", "mlflow", database]
        wait_for(
            lambda: not subprocess.run(create, capture_output=True, check=False).returncode,
            OSError,
            self._process,
            self._folder / "log",
        )

    def start(self) -> None:
        """Start it; after a kill it recovers by itself."""
        options = [f"--{name}={value}" for name, value in OPTIONS.items()]
        data = ["-D", str(self._folder / "data"), "-p", str(self._port)]
        self._process = self._run([program("postgres"), *data, *options])

    @property
    def pid(self) -> int:
        return self._process.pid

    def start_again(self) -> None:
        """Restart it after a fault has killed it, once the last of its processes is gone."""
        assert self._process.wait(timeout=60) == -signal.SIGKILL
        until = time.monotonic() + 120
        while not self.answers() and time.monotonic() < until:
            if self._process.poll() is not None:
                self.start()
            time.sleep(0.2)
        assert self.answers(), (self._folder / "log").read_text()[-2000:]

    def answers(self) -> bool:
        try:
            self.tell("select 1")
        except OSError:
            return False
        return True

    def tell(self, *statements: str) -> None:
        """Execute statements; raise OSError when it does not answer."""
        import psycopg2  # type: ignore[import-untyped]

        try:
            connection = psycopg2.connect(self.url.replace("+psycopg2", ""))
        except psycopg2.OperationalError as error:
            raise ConnectionError(str(error)) from error
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
        connection.close()

    def close(self) -> None:
        self._process.send_signal(signal.SIGINT)
        self._process.wait(timeout=60)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, command: list[str]) -> subprocess.Popen[bytes]:
        groups: list[str | int] | None = [] if self._user else None
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(
                command, cwd=self._folder, stdout=log, stderr=log,
                user=self._user, group=self._user, extra_groups=groups,
            )  # fmt: skip


class Mlflow:
    """MLflow's server over a database; it serves the files from a folder."""

    def __init__(self, database: str, folder: Path) -> None:
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._log = folder / "mlflow.log"
        stores = ["--backend-store-uri", database, "--artifacts-destination", (folder / "files").as_uri()]
        self._command = [
            *(sys.executable, "-W", "ignore", "-m", "infra.processes.parent", str(os.getpid()), "mlflow", "server"),
            *(*stores, "--workers", "1", "--host", "127.0.0.1", "--port", str(self._port)),
        ]
        self.start()

    def start(self) -> None:
        environment = {
            **os.environ,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self._log.parent, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        wait_for(self.healthy, httpx.TransportError, self._process, self._log)

    def pids(self) -> tuple[int, ...]:
        """Return all of its processes, its workers among them."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if os.getsid(int(path.name)) == self._process.pid:
                    found.append(int(path.name))
            except ProcessLookupError:
                continue
        return tuple(found)

    def start_again(self) -> None:
        self._process.wait(timeout=60)
        self.start()

    def healthy(self) -> bool:
        return httpx.get(f"{self.url}/health", timeout=30, trust_env=False).is_success

    def close(self) -> None:
        if pids := self.pids():
            os.killpg(os.getpgid(pids[0]), signal.SIGKILL)
        self._process.wait()
