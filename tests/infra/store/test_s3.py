"""What is peculiar to S3: odd keys, identity, and servers that refuse, fail, or are not there."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from infra.store.base import Store
from infra.store.opening import open_store
from infra.store.s3 import S3Store
from tests import ROOT
from tests.loopback import serving
from validation.errors import ObjectMissing, SettingsError, StoreUnreachable

pytestmark = pytest.mark.server

CALLS: dict[str, Callable[[Store], object]] = {
    "check": lambda store: store.check(),
    "list": lambda store: list(store.list("labeled/")),
    "get": lambda store: store.get("labeled/x"),
    "get odd": lambda store: store.get("labeled/../x"),
    "put": lambda store: store.put("retraining/x", b"x"),
    "exists": lambda store: store.exists("labeled/x"),
}


@dataclass
class Answer:
    """What the server below says to every request."""

    status: int = 200
    body: bytes = b""
    url: str = ""


@pytest.fixture
def answering() -> Iterator[Answer]:
    """An HTTP server on loopback that gives every request one answer."""
    answer = Answer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(answer.status)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)

        do_HEAD = do_PUT = do_GET  # noqa: N815 - http.server's names

    with serving(Handler) as answer.url:
        yield answer


def refusals(store: Store) -> dict[str, StoreUnreachable]:
    """Call everything at once; return how each call was refused."""

    def refused(call: Callable[[Store], object]) -> StoreUnreachable:
        with pytest.raises(StoreUnreachable) as caught:
            call(store)
        return caught.value

    with ThreadPoolExecutor(len(CALLS)) as pool:
        return dict(zip(CALLS, pool.map(refused, CALLS.values()), strict=True))


def test_odd_keys_are_listed_and_can_be_read(s3_store: S3Store) -> None:
    odd = [
        "labeled/Parasitized/../evil.png",
        "a//b",
        "labeled/Parasitized/\x07bell.png",
        "labeled/./c",
        "folder/",
        "/d",
    ]
    for key in odd:
        s3_store._client.put_object(Bucket=s3_store.bucket, Key=f"some/prefix/{key}", Body=key.encode())
    s3_store.put("labeled/Parasitized/good.png", b"good")
    assert sorted(info.key for info in s3_store.list("")) == sorted([*odd, "labeled/Parasitized/good.png"])
    for key in odd:
        assert s3_store.get(key) == key.encode()
        assert s3_store.exists(key)
    assert s3_store.get("labeled/Parasitized/good.png") == b"good"


def test_a_listing_goes_past_one_page_and_stays_in_its_prefix(s3_store: S3Store, moto_endpoint: str) -> None:
    outside = open_store(f"s3://{s3_store.bucket}", endpoint=moto_endpoint)
    outside.put("some/prefix2/labeled/x", b"x")
    names = [f"labeled/A/{number:04d}" for number in range(1005)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: s3_store.put(name, b"x"), names))
    assert sorted(info.key for info in s3_store.list("")) == names
    assert outside.get(f"some/prefix/{names[0]}") == b"x"


def test_boto3_is_pinned_to_what_compatible_servers_understand(s3_store: S3Store) -> None:
    config: Any = s3_store._client.meta.config
    assert config.request_checksum_calculation == "when_required"
    assert config.response_checksum_validation == "when_required"
    # A host that swallows packets costs tries x connect_timeout, plus at most 3 s of backoff.
    assert config.retries["total_max_attempts"] * config.connect_timeout <= 10


@pytest.mark.usefixtures("fake_aws")
def test_a_closed_port_is_found_out_soon() -> None:
    with socket.socket() as reserved:  # bound and not listening: connections are refused
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        began = time.monotonic()
        found = refusals(open_store("s3://cells", endpoint=url))
    # Left to itself obstore goes on for three minutes; what we wait for is a few seconds of backoff.
    assert time.monotonic() - began < 90
    for error in found.values():
        assert "cannot reach s3://cells" in error.message
        assert "network" in error.hint


@pytest.mark.usefixtures("fake_aws")
@pytest.mark.parametrize("status", [200, 404, 500])
def test_a_web_console_in_place_of_the_api(answering: Answer, status: int) -> None:
    answering.status = status
    answering.body = b"<!doctype html><html><body>console</body></html>"
    with pytest.raises(StoreUnreachable) as caught:
        open_store("s3://cells", endpoint=answering.url).check()
    assert "RETRAIN_STORE_ENDPOINT" in caught.value.hint


def test_a_missing_bucket(moto_endpoint: str, fake_aws: None) -> None:
    store = open_store("s3://no-such-bucket", endpoint=moto_endpoint)
    for name in ("check", "list", "get", "get odd", "put"):
        with pytest.raises(StoreUnreachable, match="no bucket") as caught:
            CALLS[name](store)
        assert "create it" in caught.value.hint
    assert not store.exists("x")  # HEAD has no body with a reason


@pytest.mark.usefixtures("no_aws")
def test_no_credentials_at_all() -> None:
    with pytest.raises(StoreUnreachable, match="no AWS credentials found for s3://cells") as caught:
        open_store("s3://cells")
    assert "AWS_PROFILE" in caught.value.hint


@pytest.mark.usefixtures("no_aws")
@pytest.mark.parametrize(("name", "value"), [("AWS_PROFILE", "nobody"), ("AWS_ACCESS_KEY_ID", "half")])
def test_a_broken_identity(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(StoreUnreachable, match="cannot sign in") as caught:
        open_store("s3://cells")
    assert "AWS_PROFILE" in caught.value.hint


@pytest.mark.usefixtures("fake_aws")
@pytest.mark.parametrize("endpoint", ["no url", "127.0.0.1:9000"])
def test_an_endpoint_that_is_no_url(endpoint: str) -> None:
    with pytest.raises(SettingsError) as caught:
        open_store("s3://cells", endpoint=endpoint)
    assert "RETRAIN_STORE_ENDPOINT" in caught.value.hint


def test_an_endpoint_that_only_boto3_knows(
    s3_store: S3Store, moto_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", moto_endpoint)
    store = open_store(s3_store.uri)
    store.put("a", b"x")
    assert [info.key for info in store.list("")] == ["a"]
    assert s3_store.get("a") == b"x"


def test_an_object_that_goes_away(s3_store: S3Store) -> None:
    s3_store.put("a", b"x")
    s3_store._client.delete_object(Bucket=s3_store.bucket, Key="some/prefix/a")
    with pytest.raises(ObjectMissing):
        s3_store.get("a")


def test_a_process_ends_without_warnings(s3_store: S3Store, moto_endpoint: str) -> None:
    program = (
        "import sys; from infra.store.opening import open_store; store = open_store(sys.argv[1], endpoint=sys.argv[2]);"
        "store.check(); store.put('a', b'x'); assert store.get('a') == b'x'; assert len(list(store.list(''))) == 1;"
        "store._client.get_object(Bucket=store.bucket, Key='some/prefix/a')['Body'].read(); del store"
    )
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "always::ResourceWarning", "-c", program, s3_store.uri, moto_endpoint],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
