"""A busy Prefect server costs time and not the night: its answers, more often than Prefect itself would ask."""

from __future__ import annotations

import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Lock, Thread
from urllib.parse import urlsplit

import httpx
import pytest

from infra.prefect_api import PrefectServer
from tests import ROOT
from tests.fleet import fake_environment
from tests.flows.faults.conftest import Prefect
from tests.nights import Nights
from tests.sound import check_sound
from validation.errors import RetrainError

pytestmark = [pytest.mark.server, pytest.mark.slow]

# What a server on SQLite, or a proxy before it, answers under load. Prefect's own patience is six tries of one request,
# and a single 500.
BUSY = (503, 500, 429, 503, 504, 500, 503)


class BusyServer:
    """A way to a server on which some requests, by number, are answered as a busy server answers; all else passes."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname, parts.port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/api"
        self.requests: list[int] = []
        self.refuse: dict[int, int] = {}
        self._lock = Lock()

    def serve(self) -> None:
        with suppress(OSError):  # closed: the test is over
            while True:
                client, _ = self._listening.accept()
                Thread(target=self._pass, args=(client,), daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _status(self, data: bytes) -> int | None:
        """Count a request; return how it is refused. The events of a night have a connection of their own."""
        if b" HTTP/1.1\r\n" not in data.partition(b"\r\n")[0] + b"\r\n" or b"/events/in" in data:
            return None
        with self._lock:
            status = self.refuse.get(len(self.requests), 200)
            self.requests.append(status)
        return None if status == 200 else status

    def _pass(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._upstream) as server, suppress(OSError):
            while True:
                for end in select.select([client, server], [], [])[0]:
                    data = end.recv(1 << 16)
                    if not data:
                        return
                    if end is client and (status := self._status(data)):
                        client.sendall(
                            f"HTTP/1.1 {status} Busy\r\nRetry-After: 0\r\nContent-Length: 0\r\n"
                            "Connection: close\r\n\r\n".encode()
                        )
                        return
                    (server if end is client else client).sendall(data)


@contextmanager
def busy(upstream: str) -> Iterator[BusyServer]:
    server = BusyServer(upstream)
    Thread(target=server.serve, daemon=True).start()
    try:
        yield server
    finally:
        server.close()


def test_a_busy_server_costs_time_and_not_the_night(nights: Nights, prefect: Prefect) -> None:
    home = nights.home("busy")
    with busy(prefect.url) as server:
        # At the beginning, and from the tenth request on, which is in the middle of the night.
        server.refuse = {**dict(enumerate(BUSY)), **dict(enumerate(BUSY, start=len(BUSY) + 10))}
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", "run", "--json"],
            cwd=ROOT, env=fake_environment(nights.folder, home, PREFECT_API_URL=server.url),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert [status for status in server.requests if status != 200] == [*BUSY, *BUSY]
    assert check_sound(home) == ["1"]


def test_a_server_that_is_not_there_is_one_line_and_exit_4(nights: Nights) -> None:
    home = nights.home("no-server")
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/api"
    told = subprocess.run(
        [sys.executable, "-m", "flows.cli", "run"],
        cwd=ROOT, env=fake_environment(nights.folder, home, PREFECT_API_URL=url),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 4, told.stderr
    assert f"error: no Prefect server answers at {url}" in told.stderr
    assert "Traceback" not in told.stderr


def test_so_does_what_asks_it_beside_a_night(prefect: Prefect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.prefect_api._WAITS", (0.0,) * len(BUSY))
    with busy(prefect.url) as server:
        server.refuse = dict(enumerate(BUSY))
        assert PrefectServer(server.url).healthy()
        server.refuse = dict(enumerate([*BUSY, 503], start=len(server.requests)))
        with pytest.raises(RetrainError, match="503"):
            PrefectServer(server.url).ask("GET", "/health")
        server.refuse = dict.fromkeys(range(100), httpx.codes.UNAUTHORIZED)
        asked = len(server.requests)
        with pytest.raises(RetrainError, match="401"):
            PrefectServer(server.url).ask("GET", "/health")
        assert len(server.requests) == asked + 1
