"""A fast S3 server for listings too long for moto: real ListObjectsV2 pages of 1,000 keys, made as they go."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.loopback import serving

PAGE = 1000
CELL_BYTES = 13_000


def cell_key(number: int) -> str:
    """Return the key of synthetic cell ``number``; ascending numbers give ascending keys."""
    label = "Parasitized" if number < 500_000 else "Uninfected"
    patient = f"C{number // 200:06d}P{number // 200:06d}"
    return f"labeled/{label}/{patient}ThinF_IMG_20150604_{number:08d}_cell_{number % 200}.png"


def cell_etag(number: int) -> str:
    """Return an ETag as S3 makes them: 32 hex digits."""
    return hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()


@dataclass
class FakeBucket:
    """``count`` cells that can be listed but not fetched, and whatever is put beside them."""

    count: int
    url: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: Counter[str] = field(default_factory=Counter)
    etag: Callable[[int], str] = cell_etag

    def page(self, first: int) -> bytes:
        """Return the page that begins with cell ``first``."""
        numbers = range(first, min(first + PAGE, self.count))
        more = numbers.stop < self.count
        entries = "".join(
            f"<Contents><Key>{cell_key(number)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>&quot;{self.etag(number)}&quot;</ETag><Size>{CELL_BYTES}</Size>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
            for number in numbers
        )
        return _listing(entries, len(numbers), str(numbers.stop) if more else "")

    def others(self, prefix: str) -> bytes:
        """Return the page of what was put here, under ``prefix``."""
        found = [(key, data) for key, data in sorted(self.objects.items()) if key.startswith(prefix)]
        entries = "".join(
            f"<Contents><Key>{quote(key)}</Key><ETag>&quot;{hashlib.md5(data).hexdigest()}&quot;</ETag>"
            f"<Size>{len(data)}</Size></Contents>"
            for key, data in found
        )
        return _listing(entries, len(found), "")


def _listing(entries: str, count: int, token: str) -> bytes:
    more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>"
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>cells</Name><EncodingType>url</EncodingType><KeyCount>{count}</KeyCount><MaxKeys>{PAGE}</MaxKeys>"
        f"{more if token else '<IsTruncated>false</IsTruncated>'}{entries}</ListBucketResult>"
    ).encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bucket: FakeBucket

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        key = unquote(parts.path).removeprefix("/cells").removeprefix("/")
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if not key and self.command == "GET":
            self.bucket.requests["LIST"] += 1
            prefix = query.get("prefix", "")
            first = int(query.get("continuation-token", 0))
            page = self.bucket.page(first) if prefix.startswith("labeled/") else self.bucket.others(prefix)
            self._answer(200, page)
            return
        self.bucket.requests[f"{self.command} labeled" if key.startswith("labeled/") else self.command] += 1
        if self.command == "PUT":
            self.bucket.objects[key] = body
            self._answer(200, b"")
        elif key in self.bucket.objects:
            self._answer(200, self.bucket.objects[key])
        else:
            self._answer(404, b"<Error><Code>NoSuchKey</Code><Message>no such key</Message></Error>")

    do_HEAD = do_PUT = do_GET  # noqa: N815 - http.server's names

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def fake_bucket(count: int) -> Iterator[FakeBucket]:
    """Serve the bucket ``cells`` with ``count`` cells on a free loopback port."""
    bucket = FakeBucket(count)
    with serving(type("Handler", (_Handler,), {"bucket": bucket})) as bucket.url:
        yield bucket
