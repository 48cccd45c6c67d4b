"""One local server for the pull benchmark: nginx, serving objects and the pages of a listing as an S3 bucket would.

nginx (Debian: nginx-light) sends files from the page cache with sendfile and two workers; on the machine where the
figures of benchmarks/pull.py were taken it gave out some 17,000 such objects a second, several times what any of the
clients could take. Signatures are not checked. ETags are the MD5 of the bytes, as S3's are.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BUCKET = "cells"

_CONF = """
worker_processes 2; daemon off; pid {root}/nginx.pid; error_log {root}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; etag off; sendfile on; tcp_nopush on; keepalive_requests 10000000; open_file_cache max=200000;
  default_type application/octet-stream;
  client_body_temp_path {root}/body; proxy_temp_path {root}/proxy; fastcgi_temp_path {root}/fastcgi;
  uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;
  map_hash_max_size 1048576; map_hash_bucket_size 256;
  map $uri $tag {{ default ""; include {root}/etags; }}
  map $args $page {{ default 0; "~continuation-token=(?<token>[0-9]+)" $token; }}
  server {{
    listen 127.0.0.1:{port} backlog=1024; root {root}/data;
    location = /{bucket} {{ rewrite ^ /pages/$page last; }}
    location = /{bucket}/ {{ rewrite ^ /pages/$page last; }}
    location /pages/ {{ internal; default_type application/xml; root {root}; }}
    location / {{ add_header ETag $tag; }}
  }}
}}
"""
_ENTRY = (
    "<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
    "<ETag>&quot;{etag}&quot;</ETag><Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
)


@contextmanager
def served(root: Path, count: int, nginx: str) -> Iterator[str]:
    """Serve ``count`` objects of about 12 KB from ``root``; yield the endpoint."""
    root.mkdir(parents=True, exist_ok=True)
    root.chmod(0o755)
    listed = _write_objects(root / "data" / BUCKET, count)
    (root / "etags").write_text("".join(f'"/{BUCKET}/{key}" \'"{etag}"\';\n' for key, etag, _ in listed))
    _write_pages(root / "pages", listed)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (root / "nginx.conf").write_text(_CONF.format(root=root, port=port, bucket=BUCKET))
    with subprocess.Popen([nginx, "-c", str(root / "nginx.conf")], stderr=subprocess.DEVNULL) as server:
        try:
            _wait(server, port)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def find_nginx() -> str | None:
    """Return where nginx is, if it is."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


def _write_objects(folder: Path, count: int) -> list[tuple[str, str, int]]:
    draw = random.Random(1)
    listed = []
    for number in range(count):
        patient = f"C{number % 150}P{number % 150}"
        name = f"{patient}ThinF_IMG_20150604_{number:06d}_cell_{number % 200}.png"
        key = f"labeled/{('Parasitized', 'Uninfected')[number % 2]}/{name}"
        data = draw.randbytes(draw.randrange(11_000, 13_000))
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        listed.append((key, hashlib.md5(data, usedforsecurity=False).hexdigest(), len(data)))
    return sorted(listed)


def _write_pages(folder: Path, listed: list[tuple[str, str, int]]) -> None:
    folder.mkdir()
    pages = [listed[start : start + 1000] for start in range(0, len(listed), 1000)]
    for number, page in enumerate(pages):
        more = number + 1 < len(pages)
        token = f"<NextContinuationToken>{number + 1}</NextContinuationToken>" if more else ""
        entries = "".join(_ENTRY.format(key=key, etag=etag, size=size) for key, etag, size in page)
        (folder / str(number)).write_text(
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{BUCKET}</Name><Prefix>labeled/</Prefix><KeyCount>{len(page)}</KeyCount><MaxKeys>1000</MaxKeys>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{entries}</ListBucketResult>"
        )


def _wait(server: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(200):
        if server.poll() is not None:
            break
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit(f"nginx did not start on port {port}")
