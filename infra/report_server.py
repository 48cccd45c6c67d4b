"""A small web server for the reports: read-only, pages only; for other machines only with a login."""

from __future__ import annotations

import base64
import hmac
import logging
import mimetypes
import socket
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from infra.settings.groups import LOOPBACK, SiteSettings, reachable, refuse_open
from infra.store.keys import OURS, is_odd
from validation.errors import RetrainError, UsageError

log = logging.getLogger(__name__)

START = "/reports/index.html"
# The files of a report or of Data Docs: no record, no table, no model file.
SUFFIXES = (".html", ".css", ".js", ".png", ".svg", ".ico", ".woff2")

# A client that sends nothing for so long gets no answer.
SILENCE_SECONDS = 60.0

TEXT = "text/plain; charset=utf-8"
# What a request that gets no page is answered, and what to do about it.
REFUSALS = {
    HTTPStatus.UNAUTHORIZED: ("These pages need a login.", "give that of RETRAIN_UP__AUTH"),
    HTTPStatus.FORBIDDEN: (
        "This is another name than RETRAIN_SITE__ADDRESS has.",
        "set RETRAIN_SITE__ADDRESS to the address in the browser, and start `retrain site` or `retrain up` again",
    ),
    HTTPStatus.BAD_REQUEST: ("This is not an address.", "follow a link, or begin at the index"),
    HTTPStatus.NOT_FOUND: ("There is no such page.", "`retrain report ID` builds one again, `retrain site` the index"),
}
# What an answer of one status says besides.
_MORE = {
    HTTPStatus.FOUND: {"Location": START},
    HTTPStatus.UNAUTHORIZED: {"WWW-Authenticate": 'Basic realm="reports", charset="UTF-8"'},
}
HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}

Read = Callable[[str], bytes | None]


def page_address(site: SiteSettings, key: str) -> str | None:
    """Return the address of the page at ``key`` as readers reach it; None where the site is served nowhere."""
    return f"{site.base}/{key.removeprefix(OURS)}" if site.base else None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Log in one line what went wrong with a request: a client that left, usually."""
        log.info("a request for a page ended: %s", sys.exc_info()[1])


@contextmanager
def report_site(
    read: Read, port: int, *, host: str = LOOPBACK, login: str | None = None, names: Collection[str] = ()
) -> Iterator[ThreadingHTTPServer]:
    """Yield a server that does not serve yet; port 0 is any free one.

    ``read`` returns the bytes of a key under ``retraining/``, or None. ``login`` is the ``user:password`` that every
    request must have. Without one, it answers only to its host's own name, to ``localhost`` and to ``names``.

    Raises:
        UsageError: when the port is taken or not permitted, or other machines would need no login.
    """
    refuse_open("RETRAIN_SITE__HOST", host, login)
    kind = type("_Server", (_Server,), {"address_family": socket.AF_INET6 if ":" in host else socket.AF_INET})
    wanted = "Basic " + base64.b64encode(login.encode()).decode() if login else ""
    try:
        server = kind((host, port), _handler(read, wanted, {reachable(host), "localhost", *names}))
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"cannot serve on port {port} of {host}: {getattr(error, 'strerror', None) or error}",
            "choose another one with RETRAIN_SITE__PORT, for `retrain site` also with --port (0: any free one)",
        ) from None
    try:
        yield server
    finally:
        server.server_close()


def _refused(status: HTTPStatus) -> tuple[HTTPStatus, str, bytes]:
    return status, TEXT, f"{REFUSALS[status][0]}\n".encode()


def _handler(read: Read, wanted: str, names: Collection[str]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "retrain", ""
        timeout = SILENCE_SECONDS

        def do_GET(self) -> None:
            self.wfile.write(self._send_headers())

        def do_HEAD(self) -> None:
            self._send_headers()

        def _send_headers(self) -> bytes:
            """Send status and headers, and return the body."""
            status, kind, body = self._refusal() or self._page(self.path)
            self.send_response(status)
            headers = {"Content-Type": kind, "Content-Length": str(len(body)), **HEADERS, **_MORE.get(status, {})}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            return body

        def _refusal(self) -> tuple[HTTPStatus, str, bytes] | None:
            if wanted:
                given = self.headers.get("Authorization") or ""
                if hmac.compare_digest(given.encode(), wanted.encode()):
                    return None
                return _refused(HTTPStatus.UNAUTHORIZED)
            # Another Host is a page of another site, whose name resolves to this address.
            if (self.headers.get("Host") or "").rsplit(":", 1)[0] not in names:
                return _refused(HTTPStatus.FORBIDDEN)
            return None

        def _page(self, target: str) -> tuple[HTTPStatus, str, bytes]:
            try:
                path = unquote(urlsplit(target).path)
            except ValueError:  # for instance http://[/
                return _refused(HTTPStatus.BAD_REQUEST)
            if path in ("/", "/index.html", "/reports", "/reports/"):
                return HTTPStatus.FOUND, TEXT, b""
            key = OURS + path.removeprefix("/")
            try:
                data = None if is_odd(key) or not key.endswith(SUFFIXES) else read(key)
            except RetrainError as error:
                return HTTPStatus.BAD_GATEWAY, TEXT, f"{error.message}\n".encode()
            if data is None:
                return _refused(HTTPStatus.NOT_FOUND)
            kind = mimetypes.guess_type(key)[0] or "application/octet-stream"
            is_text = kind.startswith("text/") or kind.endswith("javascript")
            return HTTPStatus.OK, f"{kind}; charset=utf-8" if is_text else kind, data

        def log_message(self, *_: object) -> None:
            """Log no requests."""

    return Handler
