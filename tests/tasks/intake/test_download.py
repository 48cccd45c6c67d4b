"""Downloads from a real server on loopback that fails in every way that a server can."""

from __future__ import annotations

import fcntl
import io
import json
import logging
import random
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

import tasks.intake.download as module
from infra.local.files import Workspace
from infra.store.memory import MemoryStore
from tasks.intake.download import ImportProgress, download, shown_url
from tasks.intake.import_cells import import_cells
from tests.loopback import QuietServer, serving
from validation.digest import digest
from validation.errors import DataInvalid, RetrainError, StoreUnreachable, Unreachable, UsageError

pytestmark = pytest.mark.thorough

CONTENT = random.Random(7).randbytes(3_000_000)
Step = Callable[["Handler"], None]


@dataclass
class Remote:
    """The file on the server, the features of the server, and the requests that it got."""

    content: bytes = CONTENT
    etag: str | None = '"one"'
    modified: str | None = "Wed, 21 Oct 2015 07:28:00 GMT"
    ranges: bool = True
    if_range: bool = True
    head: int = 200
    url: str = ""
    steps: list[Step] = field(default_factory=list)  # the behaviour of the next GETs, instead of a complete answer
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def change(self, content: bytes, etag: str) -> None:
        self.content, self.etag, self.modified = content, etag, "Thu, 22 Oct 2015 07:28:00 GMT"

    @property
    def gets(self) -> list[dict[str, str]]:
        return [headers for method, headers in self.seen if method == "GET"]


class Handler(BaseHTTPRequestHandler):
    remote: Remote
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.remote.seen.append(("HEAD", {name.lower(): value for name, value in self.headers.items()}))
        same = self.remote.etag is not None and self.headers.get("If-None-Match") == self.remote.etag
        self.begin(304 if same and self.remote.head == 200 else self.remote.head, len(self.remote.content))

    def do_GET(self) -> None:
        self.remote.seen.append(("GET", {name.lower(): value for name, value in self.headers.items()}))
        (self.remote.steps.pop(0) if self.remote.steps else send)(self)

    def begin(self, status: int, length: int, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for name, value in (("ETag", self.remote.etag), ("Last-Modified", self.remote.modified), *headers.items()):
            if value:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()


def send(handler: Handler, share: float = 1.0) -> None:
    """Answer by the protocol; with a ``share`` below 1 the connection breaks within the body."""
    remote, start = handler.remote, 0
    if remote.ranges and (asked := re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))):
        current = handler.headers.get("If-Range") in (remote.etag, remote.modified)
        start = int(asked.group(1)) if current or not remote.if_range else 0
    if start >= len(remote.content):
        handler.begin(416, 0, Content_Range=f"bytes */{len(remote.content)}")
        return
    body = remote.content[start:]
    if start:
        last = len(remote.content) - 1
        handler.begin(206, len(body), Content_Range=f"bytes {start}-{last}/{last + 1}")
    else:
        handler.begin(200, len(body))
    handler.wfile.write(body[: int(len(body) * share)])
    handler.close_connection = share < 1


def broken(share: float) -> Step:
    return lambda handler: send(handler, share)


def status(code: int, **headers: str) -> Step:
    return lambda handler: handler.begin(code, 0, **headers)


def silence(handler: Handler) -> None:
    """Accept, and close the connection without an answer."""
    handler.close_connection = True


@pytest.fixture
def remote() -> Iterator[Remote]:
    found = Remote()
    handler = type("OneHandler", (Handler,), {"remote": found})
    with serving(handler) as url:
        found.url = f"{url}/cells/cell_images.zip"
        yield found


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def fetch(remote: Remote, tmp_path: Path, pauses: list[float]) -> Callable[[], bytes]:
    """Download with recorded pauses in place of real ones; return the content."""
    return lambda: download(remote.url, tmp_path / "downloads", pause=pauses.append).read_bytes()


def left(folder: Path) -> set[str]:
    return {"".join(path.suffixes) for path in folder.iterdir()}


def test_one_request_downloads_the_file_and_leaves_no_part(
    fetch: Callable[[], bytes], remote: Remote, tmp_path: Path
) -> None:
    assert fetch() == CONTENT
    assert len(remote.seen) == 1
    assert left(tmp_path / "downloads") == {".zip", ".zip.json", ".lock"}


def test_a_second_time_nothing_is_downloaded(fetch: Callable[[], bytes], remote: Remote) -> None:
    fetch()
    assert fetch() == CONTENT
    assert [method for method, _ in remote.seen] == ["GET", "HEAD"]
    assert remote.seen[1][1]["if-none-match"] == '"one"'


def test_a_changed_file_is_downloaded_again(fetch: Callable[[], bytes], remote: Remote) -> None:
    fetch()
    remote.change(b"new" * 1000, '"two"')
    assert fetch() == b"new" * 1000
    assert fetch() == b"new" * 1000
    assert len(remote.gets) == 2


@pytest.mark.parametrize("answer", [403, 404, 405, 500])
def test_the_kept_file_is_used_when_the_server_refuses_head(
    fetch: Callable[[], bytes], remote: Remote, answer: int
) -> None:
    fetch()
    remote.head = answer
    assert fetch() == CONTENT
    assert len(remote.gets) == 1


def test_the_kept_file_is_used_offline(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    url = closed_port_url()
    path = tmp_path / f"{digest(url)}.zip"
    path.write_bytes(CONTENT)
    assert download(url, tmp_path) == path
    assert "using the kept file" in caplog.text


def test_a_truncated_kept_file_is_not_used(fetch: Callable[[], bytes], tmp_path: Path) -> None:
    fetch()
    (kept,) = (tmp_path / "downloads").glob("*.zip")
    kept.write_bytes(CONTENT[:1000])
    assert fetch() == CONTENT


@pytest.mark.parametrize("etag", ['"one"', None, 'W/"weak"'])
def test_a_broken_download_is_resumed(
    fetch: Callable[[], bytes], remote: Remote, pauses: list[float], etag: str | None
) -> None:
    remote.etag = etag
    remote.steps = [broken(0.5), broken(0.5)]
    assert fetch() == CONTENT
    first, second, third = remote.gets
    assert "range" not in first
    assert [second["range"], third["range"]] == ["bytes=1500000-", "bytes=2250000-"]
    # A weak ETag does not guarantee equal bytes: the date is used.
    assert second["if-range"] == ('"one"' if etag == '"one"' else remote.modified)
    assert len(pauses) == 2


def test_another_process_resumes_a_killed_download(fetch: Callable[[], bytes], remote: Remote, tmp_path: Path) -> None:
    def killed(_: float) -> None:
        raise KeyboardInterrupt

    remote.steps = [broken(0.5)]
    with pytest.raises(KeyboardInterrupt):
        download(remote.url, tmp_path / "downloads", pause=killed)
    assert ".zip" not in left(tmp_path / "downloads")
    assert fetch() == CONTENT
    assert remote.gets[-1]["range"] == "bytes=1500000-"


def test_a_complete_part_is_not_requested_again(fetch: Callable[[], bytes], remote: Remote, tmp_path: Path) -> None:
    fetch()
    (kept,) = (tmp_path / "downloads").glob("*.zip")
    kept.rename(kept.with_suffix(".zip.part"))
    kept.with_suffix(".zip.json").rename(kept.with_suffix(".zip.part.json"))
    assert fetch() == CONTENT
    assert len(remote.seen) == 1


def test_a_file_without_a_version_is_restarted(fetch: Callable[[], bytes], remote: Remote) -> None:
    remote.etag = remote.modified = None
    remote.steps = [broken(0.5)]
    assert fetch() == CONTENT
    assert all("range" not in headers for headers in remote.gets)
    assert fetch() == CONTENT
    assert len(remote.gets) == 2


def test_a_server_that_ignores_range(fetch: Callable[[], bytes], remote: Remote) -> None:
    remote.ranges = False
    remote.steps = [broken(0.5)]
    assert fetch() == CONTENT
    assert len(remote.gets) == 2


@pytest.mark.parametrize("if_range", [True, False])
@pytest.mark.parametrize("size", [100, 2_900_000, 3_100_000])
def test_a_file_that_changes_in_between_is_restarted(
    fetch: Callable[[], bytes], remote: Remote, if_range: bool, size: int
) -> None:
    new = random.Random(8).randbytes(size)

    def break_and_change(handler: Handler) -> None:
        send(handler, 0.5)
        remote.change(new, '"two"')

    remote.if_range = if_range
    remote.steps = [break_and_change]
    assert fetch() == new


def test_a_part_of_another_time_is_checked(fetch: Callable[[], bytes], remote: Remote, tmp_path: Path) -> None:
    part = tmp_path / "downloads" / f"{digest(remote.url)}.zip.part"
    part.parent.mkdir()
    part.write_bytes(b"x" * 1000)
    part.with_name(f"{part.name}.json").write_text("no json")
    assert fetch() == CONTENT


@pytest.mark.parametrize("step", [status(503), status(429), status(500), silence, broken(0.0)])
def test_transient_failures_are_retried(
    fetch: Callable[[], bytes], remote: Remote, pauses: list[float], step: Step
) -> None:
    remote.steps = [step] * 4
    assert fetch() == CONTENT
    assert len(pauses) == 4
    for number, seconds in enumerate(pauses):
        assert 0.25 * 2**number <= seconds <= 0.5 * 2**number


def test_the_server_may_ask_for_a_longer_pause(fetch: Callable[[], bytes], remote: Remote, pauses: list[float]) -> None:
    remote.steps = [status(503, Retry_After="7"), status(503, Retry_After="99999"), status(503, Retry_After="tomorrow")]
    assert fetch() == CONTENT
    assert pauses[:2] == [7, 30]
    assert pauses[2] <= 2


def test_a_server_that_falls_silent(
    fetch: Callable[[], bytes], remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stall(handler: Handler) -> None:
        handler.begin(200, len(CONTENT))
        handler.wfile.write(CONTENT[:1000])
        handler.rfile.read(1)  # until the client hangs up

    monkeypatch.setattr(module, "_TIMEOUT", httpx.Timeout(2.0))
    remote.steps = [stall]
    assert fetch() == CONTENT
    assert remote.gets[-1]["range"] == "bytes=1000-"


def test_progress_resets_the_count_of_failures(fetch: Callable[[], bytes], remote: Remote) -> None:
    remote.steps = [broken(0.3)] * 12
    assert fetch() == CONTENT
    assert len(remote.gets) == 13


@pytest.mark.parametrize("step", [status(503), silence, broken(0.0), broken(0.5)])
def test_lasting_failures_end_the_download(
    fetch: Callable[[], bytes], remote: Remote, pauses: list[float], step: Step
) -> None:
    remote.ranges = False  # so that half a body is no progress the second time
    remote.steps = [step] * 1000
    with pytest.raises(Unreachable, match="cannot download") as caught:
        fetch()
    assert "retrain import FILE" in caught.value.hint
    assert caught.value.exit_code == 4
    assert len(pauses) <= 6


def test_a_server_that_drips_is_given_up(
    fetch: Callable[[], bytes], remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_REQUESTS", 20)
    remote.steps = [broken(0.001)] * 1000
    with pytest.raises(Unreachable, match="after 20 requests"):
        fetch()


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_a_refusal_is_final_and_clear(
    fetch: Callable[[], bytes], remote: Remote, pauses: list[float], code: int
) -> None:
    remote.steps = [status(code)]
    with pytest.raises(Unreachable, match=f"/cells/cell_images.zip: the server answered {code}") as caught:
        fetch()
    assert "by hand" in caught.value.hint
    assert pauses == []


def closed_port_url() -> str:
    with QuietServer(("127.0.0.1", 0), Handler) as server:
        return f"http://127.0.0.1:{server.server_port}/cells.zip"


def test_no_server_at_all(tmp_path: Path, pauses: list[float]) -> None:
    with pytest.raises(Unreachable, match="Connection refused"):
        download(closed_port_url(), tmp_path, pause=pauses.append)
    assert sum(pauses) < 10


def test_a_redirect_is_followed(remote: Remote, fetch: Callable[[], bytes]) -> None:
    remote.steps = [status(302, Location="/elsewhere.zip")]
    assert fetch() == CONTENT


@pytest.mark.parametrize(
    "url", ["ftp://host/x.zip", "file:///etc/passwd", "http://", "http://[::1", "s3://bucket/x.zip"]
)
def test_other_addresses_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot download"):
        download(url, tmp_path)


def test_too_little_space_is_reported_before_the_download(
    fetch: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(RetrainError, match=r"not enough space .* 3 MB more"):
        fetch()


def test_without_a_length_there_is_a_limit(remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.close_connection = True
        with suppress(OSError):  # until the client leaves
            while True:
                handler.wfile.write(b"x" * 65_536)

    monkeypatch.setattr(module, "MOST_BYTES", 1_000_000)
    remote.steps = [endless]
    with pytest.raises(Unreachable, match="does not say how long it is") as caught:
        download(remote.url, tmp_path)
    assert "by hand" in caught.value.hint
    assert len(remote.gets) == 1
    assert not list(tmp_path.glob("*.part"))


def test_a_folder_that_cannot_be_written(remote: Remote, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RetrainError, match="cannot write the download") as caught:
        download(remote.url, tmp_path / "file")
    assert "RETRAIN_HOME" in caught.value.hint


def test_two_downloads_of_one_file_exclude_each_other(remote: Remote, tmp_path: Path) -> None:
    with (tmp_path / f"{digest(remote.url)}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RetrainError, match="another process"):
            download(remote.url, tmp_path)


def test_progress_grows_and_ends_at_the_length(remote: Remote, tmp_path: Path) -> None:
    seen: list[ImportProgress] = []
    remote.steps = [broken(0.5)]
    download(remote.url, tmp_path, progress=seen.append, pause=lambda _: None)
    assert [event.done for event in seen] == sorted(event.done for event in seen)
    assert seen[-1] == ImportProgress("download", len(CONTENT), len(CONTENT), "bytes")


def test_secrets_of_an_address_are_not_shown(remote: Remote, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tasks")
    secret = remote.url.replace("http://", "http://user:hidden@") + "?X-Amz-Signature=hidden#hidden"
    assert shown_url(secret) == remote.url
    remote.steps = [status(503), status(404)]
    with pytest.raises(Unreachable) as caught:
        download(secret, tmp_path, pause=lambda _: None)
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("tasks")]
    assert ours
    assert "hidden" not in "".join([*ours, str(caught.value), *(path.read_text() for path in tmp_path.glob("*.json"))])


# What the importer makes of it.


def archive(names: list[str]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        for name in names:
            file.writestr(name, f"bytes of {name}")
    return data.getvalue()


def test_an_import_from_a_url_downloads_once(remote: Remote, tmp_path: Path) -> None:
    remote.content = archive(["cell_images/Parasitized/a.png", "cell_images/Uninfected/b.png"])
    remote.steps = [broken(0.5)]
    store, workspace, seen = MemoryStore(), Workspace(tmp_path), list[ImportProgress]()
    first = import_cells(f"{remote.url}?token=hidden", store, workspace, progress=seen.append)
    assert (first.source, first.found, first.written) == (remote.url, 2, 2)
    assert sorted(store.objects) == ["labeled/Parasitized/a.png", "labeled/Uninfected/b.png"]
    assert {event.stage for event in seen} == {"download", "import"}
    assert [path.parent for path in tmp_path.rglob("*.zip")] == [tmp_path / "cache" / "downloads"]
    again = import_cells(f"{remote.url}?token=hidden", store, workspace)
    assert (again.written, again.unchanged) == (0, 2)
    assert len(remote.gets) == 2


def test_nlm_stands_for_the_public_archive(remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote.content = archive(["cell_images/Parasitized/a.png"])
    monkeypatch.setattr("tasks.intake.import_cells.NLM_URL", remote.url)
    assert import_cells("nlm", MemoryStore(), Workspace(tmp_path)).source == remote.url


def test_a_page_in_place_of_the_zip_is_not_kept(remote: Remote, tmp_path: Path) -> None:
    remote.content = b"<!doctype html>please sign in"
    with pytest.raises(DataInvalid, match="is not a valid zip file"):
        import_cells(remote.url, MemoryStore(), Workspace(tmp_path))
    remote.content = archive(["Parasitized/a.png"])
    assert import_cells(remote.url, MemoryStore(), Workspace(tmp_path)).written == 1


def test_an_unreachable_store_is_reported_before_the_download(remote: Remote, tmp_path: Path) -> None:
    class Gone(MemoryStore):
        def list(self, prefix: str) -> Iterator[object]:  # type: ignore[override]
            raise StoreUnreachable(f"cannot list {prefix}")

    with pytest.raises(StoreUnreachable):
        import_cells(remote.url, Gone(), Workspace(tmp_path))
    assert remote.seen == []


def test_the_description_beside_the_file_contains_no_url(remote: Remote, tmp_path: Path) -> None:
    path = download(remote.url, tmp_path)
    noted = json.loads(path.with_name(f"{path.name}.json").read_text())
    assert noted == {"etag": remote.etag, "modified": remote.modified, "length": len(CONTENT)}
