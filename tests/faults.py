"""A proxy on loopback in front of an S3 server, which breaks answers where it is told to and counts all requests."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from threading import Event, Lock
from typing import Literal, TypeVar
from urllib.parse import unquote, urlsplit

from tests.loopback import serving

Fault = Literal["500", "503", "403", "hang", "reset", "reset midway", "truncated", "wrong", "empty"]

SLOW_DOWN = (
    b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'
)
_NOT_HANDED_ON = ("connection", "transfer-encoding", "content-length", "keep-alive", "date", "server")


@dataclass(frozen=True)
class Seen:
    """One request that arrived."""

    method: str
    path: str
    query: str

    @property
    def is_get_of_a_cell(self) -> bool:
        return self.method == "GET" and "/labeled/" in self.path


@dataclass
class Proxy:
    """What the proxy is told, and what it saw. Keys are given as they end: ``labeled/A/x.png``."""

    upstream: str
    url: str = ""
    closing: Event = field(default_factory=Event)
    seen: list[Seen] = field(default_factory=list)
    meanwhile: dict[str, Callable[[], None]] = field(default_factory=dict)
    _faults: dict[str, deque[Fault]] = field(default_factory=lambda: defaultdict(deque))
    _always: dict[str, Fault] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def fail(self, key: str, *faults: Fault) -> None:
        """Break the next GETs of ``key``, one fault each."""
        self._faults[key].extend(faults)

    def always(self, key: str, fault: Fault) -> None:
        """Break every GET of ``key``; an empty key: of every cell; ``list``: of every listing."""
        self._always[key] = fault

    def mend(self, key: str) -> None:
        """Break no further GET of ``key``."""
        self._always.pop(key, None)

    def gets(self, key: str = "/labeled/") -> int:
        """Count the GETs of cells whose path contains ``key``."""
        return sum(seen.is_get_of_a_cell and key in seen.path for seen in self.seen)

    def arrive(self, method: str, target: str) -> Fault | None:
        """Note a request; say how to break its answer. Runs what was to happen ``meanwhile``, once."""
        parts = urlsplit(target)
        seen = Seen(method, unquote(parts.path), parts.query)
        with self._lock:
            self.seen.append(seen)
            if not seen.is_get_of_a_cell:
                happens = self.meanwhile.pop("list", None) if "list-type" in seen.query else None
                fault = self._always.get("list") if "list-type" in seen.query else None
            else:
                key = seen.path[seen.path.index("labeled/") :]
                happens = self.meanwhile.pop(key, None)
                fault = self._faults[key].popleft() if self._faults[key] else self._always.get(key, None)
                fault = fault or self._always.get("")
        if happens:
            happens()
        return fault


P = TypeVar("P", bound=Proxy)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.proxy.arrive(self.command, self.path)
        if fault == "reset":
            self._reset()
        elif fault == "hang":
            self.proxy.closing.wait()
            self.close_connection = True
        elif fault in ("500", "503", "403"):
            self._answer(int(fault), {}, SLOW_DOWN if fault == "503" else b"")
        else:
            self._pass_on(body, fault)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815 - http.server's names

    def _pass_on(self, body: bytes, fault: Fault | None) -> None:
        upstream = http.client.HTTPConnection(urlsplit(self.proxy.upstream).netloc)
        try:
            upstream.request(self.command, self.path, body or None, dict(self.headers))
            answer = upstream.getresponse()
            data = answer.read()
        finally:
            upstream.close()
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in _NOT_HANDED_ON}
        if self.command == "HEAD":
            headers["Content-Length"] = answer.getheader("Content-Length") or "0"
        if fault == "wrong":
            data = bytes(byte ^ 0xFF for byte in data)
        elif fault == "empty":
            data = b""
        self._answer(answer.status, headers, data, whole=fault not in ("truncated", "reset midway"))
        if fault == "reset midway":
            self._reset()

    def _answer(self, status: int, headers: dict[str, str], data: bytes, *, whole: bool = True) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data if whole else data[: len(data) // 2])
        if not whole:
            self.wfile.flush()
            self.close_connection = True

    def _reset(self) -> None:
        """Drop the connection with a RST, as a firewall or a dying server does."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def finish(self) -> None:
        with contextlib.suppress(OSError):  # a connection that was reset on purpose
            super().finish()


@contextmanager
def proxy_before(upstream: str) -> Iterator[Proxy]:
    """Run a proxy in front of ``upstream`` on a free loopback port."""
    with running(Proxy(upstream)) as proxy:
        yield proxy


@contextmanager
def running(proxy: P) -> Iterator[P]:
    """Run a proxy of any kind on a free loopback port."""
    handler = type("Handler", (_Handler,), {"proxy": proxy})
    with serving(handler) as proxy.url:
        try:
            yield proxy
        finally:
            proxy.closing.set()
