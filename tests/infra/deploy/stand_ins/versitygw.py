#!/venv/bin/python
"""Stands in for versitygw: ``versitygw --port :PORT posix FOLDER`` serves the buckets of a folder over S3.

The server is moto's, which keeps everything in memory: it reads the folder when it starts, and writes it when it is
told to stop. It believes every identity.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server


def main(port: int, folder: Path) -> None:
    """Serve until SIGTERM."""
    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    for place in sorted(folder.iterdir()):
        backend.create_bucket(place.name, "us-east-1")
        for path in place.rglob("*"):
            if path.is_file():
                backend.put_object(place.name, str(path.relative_to(place)), path.read_bytes())
    s3 = DomainDispatcherApplication(create_backend_app)

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/health":
            return s3(environ, start_response)  # type: ignore[no-any-return]
        start_response("200 OK", [])
        return []

    server = make_server("0.0.0.0", port, application, threaded=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        server.serve_forever()
    finally:
        for name, bucket in backend.buckets.items():
            for key, found in bucket.keys.items():
                path = folder / name / key
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(found.value)


if __name__ == "__main__":
    main(int(sys.argv[2].removeprefix(":")), Path(sys.argv[4]))
