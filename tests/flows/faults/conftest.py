"""One Prefect server and one program that forks nights, for all tests of this package; both take seconds to start."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.unattended.up import KEEPS_SLOTS
from infra.prefect_server import _server_command, _server_environment, _wait_until_healthy, free_port
from tests.nights import Nights
from tests.servers import with_tables


class Prefect:
    """A Prefect server that can be killed and restarted, at the same address and on the same database."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}/api"
        self.start()

    def start(self) -> None:
        environment = {**_server_environment(), "PREFECT_HOME": str(self._home), "DO_NOT_TRACK": "1", **KEEPS_SLOTS}
        with (self._home / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                _server_command(self._port), stdout=log, stderr=log, env=environment, start_new_session=True
            )
        _wait_until_healthy(self._process, self.url, str(self._home / "server.log"))

    @property
    def pid(self) -> int:
        return self._process.pid

    def start_again(self) -> None:
        """Restart the server after a fault has killed it."""
        assert self._process.wait(timeout=60) == -signal.SIGKILL
        self.start()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="package")
def prefect(tmp_path_factory: pytest.TempPathFactory, prefect_database: Path) -> Iterator[Prefect]:
    home = tmp_path_factory.mktemp("prefect")
    with_tables(home, prefect_database)
    server = Prefect(home)
    yield server
    server.close()


@pytest.fixture(scope="package")
def nights(tmp_path_factory: pytest.TempPathFactory, prefect: Prefect, empty_registry: Path) -> Iterator[Nights]:
    folder = tmp_path_factory.mktemp("nights")
    made = Nights(folder, empty_registry, PREFECT_API_URL=prefect.url)
    yield made
    made.close()
