"""A small web server for the reports: read-only, pages only, loopback only."""

from __future__ import annotations

import logging
import mimetypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from infra.store.keys import OURS, is_odd
from validation.errors import RetrainError, UsageError

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
START = "/reports/index.html"
# The files of a report or of Data Docs: no record, no table, no model file.
SUFFIXES = (".html", ".css", ".js", ".png", ".svg", ".ico", ".woff2")

# A client that sends nothing for so long gets no answer.
SILENCE_SECONDS = 60.0

TEXT = "text/plain; charset=utf-8"
HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}

Read = Callable[[str], bytes | None]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Log in one line what went wrong with a request: a client that left, usually."""
        log.info("a request for a page ended: %s", sys.exc_info()[1])


@contextmanager
def local_site(read: Read, port: int) -> Iterator[ThreadingHTTPServer]:
    """Yield a server on loopback that does not serve yet; port 0 is any free one.

    ``read`` returns the bytes of a key under ``retraining/``, or None.

    Raises:
        UsageError: when the port is taken or not permitted.
    """
    try:
        server = _Server((HOST, port), _handler(read))
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"cannot serve on port {port} of {HOST}: {getattr(error, 'strerror', None) or error}",
            "choose another one with --port, or 0 for any free one",
        ) from None
    try:
        yield server
    finally:
        server.server_close()


def _handler(read: Read) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "retrain", ""
        timeout = SILENCE_SECONDS

        def do_GET(self) -> None:
            self.wfile.write(self._send_headers())

        def do_HEAD(self) -> None:
            self._send_headers()

        def _send_headers(self) -> bytes:
            """Send status and headers, and return the body."""
            status, kind, body = self._page(self.path)
            self.send_response(status)
            headers = {"Content-Type": kind, "Content-Length": str(len(body)), **HEADERS}
            for name, value in ({**headers, "Location": START} if status == HTTPStatus.FOUND else headers).items():
                self.send_header(name, value)
            self.end_headers()
            return body

        def _page(self, target: str) -> tuple[HTTPStatus, str, bytes]:
            # Another Host is a page of another site, whose name resolves to 127.0.0.1.
            if (self.headers.get("Host") or "").rsplit(":", 1)[0] not in (HOST, "localhost"):
                return HTTPStatus.FORBIDDEN, TEXT, b"This server is for this machine only.\n"
            try:
                path = unquote(urlsplit(target).path)
            except ValueError:  # for instance http://[/
                return HTTPStatus.BAD_REQUEST, TEXT, b"This is not an address.\n"
            if path in ("/", "/index.html", "/reports", "/reports/"):
                return HTTPStatus.FOUND, TEXT, b""
            key = OURS + path.removeprefix("/")
            try:
                data = None if is_odd(key) or not key.endswith(SUFFIXES) else read(key)
            except RetrainError as error:
                return HTTPStatus.BAD_GATEWAY, TEXT, f"{error.message}\n".encode()
            if data is None:
                return HTTPStatus.NOT_FOUND, TEXT, b"There is no such page.\n"
            kind = mimetypes.guess_type(key)[0] or "application/octet-stream"
            is_text = kind.startswith("text/") or kind.endswith("javascript")
            return HTTPStatus.OK, f"{kind}; charset=utf-8" if is_text else kind, data

        def log_message(self, *_: object) -> None:
            """Log no requests."""

    return Handler
