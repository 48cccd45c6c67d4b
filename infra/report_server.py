"""A small web server on loopback for the reports: reads only, serves only pages, and only to this machine."""

from __future__ import annotations

import mimetypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from infra.store.keys import OURS, is_odd
from validation.errors import RetrainError, UsageError

HOST = "127.0.0.1"
START = "/reports/index.html"
# What a report or a validation's own pages may consist of: no record, no table, no model file.
SUFFIXES = (".html", ".css", ".js", ".png", ".svg", ".ico", ".woff2")

Read = Callable[[str], bytes | None]


@contextmanager
def local_site(read: Read, port: int) -> Iterator[ThreadingHTTPServer]:
    """Yield a server on loopback, not yet serving; ``read`` returns the bytes of a key under ``retraining/``, or None.

    Port 0 is any free one.

    Raises:
        UsageError: when the port is taken, or not ours to take.
    """
    try:
        server = ThreadingHTTPServer((HOST, port), _handler(read))
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"cannot serve on port {port} of {HOST}: {getattr(error, 'strerror', None) or error}",
            "choose another one with --port, or 0 for any that is free",
        ) from None
    server.daemon_threads = True
    try:
        yield server
    finally:
        server.server_close()


def _handler(read: Read) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "retrain", ""

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def _answer(self, *, with_body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            if not self._is_for_us():
                self._send(HTTPStatus.FORBIDDEN, b"This server is for this machine only.\n", with_body=with_body)
            elif path in ("/", "/index.html", "/reports", "/reports/"):
                self.send_response(HTTPStatus.FOUND)
                self.send_header("Location", START)
                self.send_header("Content-Length", "0")
                self.end_headers()
            else:
                self._send_page(path, with_body=with_body)

        def _send_page(self, path: str, *, with_body: bool) -> None:
            key = OURS + path.removeprefix("/")
            try:
                data = None if is_odd(key) or not key.endswith(SUFFIXES) else read(key)
            except RetrainError as error:
                self._send(HTTPStatus.BAD_GATEWAY, f"{error.message}\n".encode(), with_body=with_body)
                return
            if data is None:
                self._send(HTTPStatus.NOT_FOUND, b"There is no such page.\n", with_body=with_body)
                return
            kind = mimetypes.guess_type(key)[0] or "application/octet-stream"
            text = kind.startswith("text/") or kind.endswith("javascript")
            self._send(HTTPStatus.OK, data, f"{kind}; charset=utf-8" if text else kind, with_body=with_body)

        def _is_for_us(self) -> bool:
            """Whether the browser meant this server: another name for 127.0.0.1 is somebody else's page asking."""
            host = (self.headers.get("Host") or "").rsplit(":", 1)[0]
            return host in ("127.0.0.1", "localhost")

        def _send(
            self, status: HTTPStatus, body: bytes, kind: str = "text/plain; charset=utf-8", *, with_body: bool
        ) -> None:
            self.send_response(status)
            for name, value in (
                ("Content-Type", kind),
                ("Content-Length", str(len(body))),
                ("X-Content-Type-Options", "nosniff"),
                ("Cache-Control", "no-store"),
                ("Referrer-Policy", "no-referrer"),
            ):
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Stay quiet: a page that was read is no news."""

    return Handler
