"""A small web server on a free loopback port for tests, which says nothing when a client hangs up on it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class QuietServer(ThreadingHTTPServer):
    """Clients that hang up are part of the play; any other error is one of the test's own server, and is printed."""

    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve until the end, and log no request; yield the address, ``http://127.0.0.1:port``."""
    quiet = type("Quiet", (handler,), {"log_message": lambda *_: None})
    with QuietServer(("127.0.0.1", 0), quiet) as server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
