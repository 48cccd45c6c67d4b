"""The web server on loopback: it serves pages only, to this machine only."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from infra.report_server import report_site
from validation.errors import StoreUnreachable, UsageError

PAGES = {
    "retraining/reports/index.html": "<p>ä</p>".encode(),
    "retraining/validations/x/docs.css": b"p {}",
    "retraining/candidates/x/model.onnx": b"model",
    "retraining/nights/x.json": b"{}",
}


def read(key: str) -> bytes | None:
    if key.endswith("away.html"):
        raise StoreUnreachable("the bucket does not answer")
    return PAGES.get(key)


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with report_site(read, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        with httpx.Client(
            base_url=f"http://127.0.0.1:{server.server_address[1]}", trust_env=False, timeout=120
        ) as client:
            yield client
        server.shutdown()
        thread.join()


def test_the_root_leads_to_the_index(client: httpx.Client) -> None:
    answer = client.get("/", follow_redirects=True)
    assert (answer.status_code, answer.text) == (200, "<p>ä</p>")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.get("/validations/x/docs.css").content == b"p {}"


def test_head_has_no_body(client: httpx.Client) -> None:
    answer = client.head("/reports/index.html")
    assert answer.status_code == 200
    assert answer.content == b""
    assert int(answer.headers["content-length"]) == len(PAGES["retraining/reports/index.html"])


@pytest.mark.parametrize(
    "path",
    [
        "/reports/other.html", "/candidates/x/model.onnx", "/nights/x.json", "/../labeled/x.html",
        "/reports/%2e%2e/nights/x.json", "/reports//index.html", "//etc/passwd", "/%00.html",
    ],
)  # fmt: skip
def test_nothing_but_pages_is_given_out(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 404


@pytest.mark.parametrize("target", ["http://[/", "http://[::1"])
def test_what_is_no_address_gets_an_answer(client: httpx.Client, target: str) -> None:
    with socket.create_connection(("127.0.0.1", client.base_url.port or 0), timeout=60) as raw:
        raw.sendall(f"GET {target} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        assert raw.makefile().readline() == "HTTP/1.0 400 Bad Request\r\n".replace("\r\n", "\n")


def test_a_client_that_leaves_is_one_line(
    client: httpx.Client, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    PAGES["retraining/reports/long.html"] = b"x" * 50_000_000
    with socket.create_connection(("127.0.0.1", client.base_url.port or 0), timeout=60) as raw:
        raw.sendall(b"GET /reports/long.html HTTP/1.0\r\nHost: localhost\r\n\r\n")
        raw.recv(1)
        # Closed with unread data: a reset.
    while "a request for a page ended" not in caplog.text:
        time.sleep(0.01)
    assert "Traceback" not in capsys.readouterr().err


def test_another_sites_page_cannot_read_here(client: httpx.Client) -> None:
    assert client.get("/reports/index.html", headers={"Host": "evil.example:80"}).status_code == 403


def test_it_only_reads(client: httpx.Client) -> None:
    assert client.post("/reports/index.html", content=b"x").status_code == 501


def test_a_store_that_does_not_answer_is_said(client: httpx.Client) -> None:
    answer = client.get("/reports/away.html")
    assert (answer.status_code, answer.text) == (502, "the bucket does not answer\n")


def test_a_taken_port_says_what_to_do() -> None:
    with report_site(read, 0) as server, pytest.raises(UsageError, match="cannot serve on port") as caught:
        report_site(read, server.server_address[1]).__enter__()
    assert "--port" in caught.value.hint


def test_other_machines_need_the_login() -> None:
    with pytest.raises(UsageError, match=r"RETRAIN_SITE__HOST is 0\.0\.0\.0"):
        report_site(read, 0, host="0.0.0.0").__enter__()
    with report_site(read, 0, host="0.0.0.0", login="reader:ä long one") as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        page = f"http://127.0.0.1:{server.server_address[1]}/reports/index.html"
        headers = {"Host": "reports.example.org"}
        asked = [httpx.get(page, headers=headers, auth=login, trust_env=False, timeout=120)
                 for login in (None, ("reader", "wrong"), ("reader", "ä long one"))]  # fmt: skip
        server.shutdown()
        thread.join()
    assert [answer.status_code for answer in asked] == [401, 401, 200]
    assert asked[0].headers["www-authenticate"].startswith("Basic")


def test_it_answers_to_the_name_that_the_settings_give_it() -> None:
    with report_site(read, 0, names=["reports.example.org"]) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        page = f"http://127.0.0.1:{server.server_address[1]}/reports/index.html"
        codes = [
            httpx.get(page, headers={"Host": host}, trust_env=False, timeout=120).status_code
            for host in ("reports.example.org", "evil.example")
        ]
        server.shutdown()
        thread.join()
    assert codes == [200, 403]
