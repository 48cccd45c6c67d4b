"""One contract over all stores."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from infra.settings.groups import WireSettings
from infra.store.base import Store
from infra.store.folder import FolderStore
from infra.store.memory import MemoryStore
from infra.store.obstore import ObstoreStore
from infra.store.opening import open_store
from infra.store.s3 import S3Store
from tests.loopback import serving
from validation.errors import ObjectMissing, RetrainError, SettingsError, StoreUnreachable

KEYS = [
    "labeled/Parasitized/C33P1thinF_IMG_20150619_114756a_cell_179.png",
    "labeled/Parasitized/Zelle_ä_漢字_😀.png",
    "labeled/Parasitized/e\u0301 is not é.png",
    'labeled/Parasitized/it\'s "quoted".png',
    "labeled/Parasitized/<script>alert(1)</script>.png",
    "labeled/Parasitized/100%.png",
    "labeled/Parasitized/%2e%2e%2fevil.png",
    "labeled/Parasitized/a b  c .png",
    "labeled/Parasitized/a+b.png",
    "labeled/Parasitized/a#b?c&d=e*f~{}|^`[].png",
    "labeled/Parasitized/back\\slash\\..\\x.png",
    "labeled/Parasitized/...",
    "labeled/Parasitized/\u202egnp.png",
    "labeled/Parasitized/" + "deep/" * 40 + "x.png",
    "retraining/snapshots/0123.json",
]
ODD_KEYS = ["labeled/Parasitized/../evil.png", "../evil", "/etc/passwd", "a//b", "a/./b", "a/", "", "a\x00b", "a\nb"]


@pytest.fixture(
    params=[
        "folder",
        "memory",
        "obstore",
        pytest.param("s3_store", marks=pytest.mark.server),
        pytest.param("real_s3_store", marks=pytest.mark.server),
    ]
)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        (tmp_path / "store").mkdir()
        return FolderStore(tmp_path / "store")
    if request.param == "memory":
        return MemoryStore()
    if request.param == "obstore":
        return ObstoreStore("memory:///")
    found: Store = request.getfixturevalue(request.param)
    return found


def keys(store: Store, prefix: str = "") -> list[str]:
    return sorted(info.key for info in store.list(prefix))


def test_every_clean_key_comes_back_as_it_was(store: Store) -> None:
    for key in KEYS:
        store.put(key, key.encode())
    for key in KEYS:
        assert store.exists(key)
        assert store.get(key) == key.encode()
    assert keys(store) == sorted(KEYS)
    assert {info.key: info.size for info in store.list("labeled/")} == {
        key: len(key.encode()) for key in KEYS if key.startswith("labeled/")
    }


def test_an_empty_store_can_be_used(store: Store) -> None:
    store.check()
    assert keys(store) == []


def test_a_prefix_lists_what_begins_with_it(store: Store) -> None:
    for key in ("labeled/A/1", "labeled/A/2", "labeled/AB/3", "labeled/B/4", "labeledx/5"):
        store.put(key, b"")
    assert keys(store, "labeled/A/") == ["labeled/A/1", "labeled/A/2"]
    assert keys(store, "labeled/A") == ["labeled/A/1", "labeled/A/2", "labeled/AB/3"]
    assert keys(store, "labeled/") == ["labeled/A/1", "labeled/A/2", "labeled/AB/3", "labeled/B/4"]
    assert keys(store, "labeled/B/4/") == []
    assert keys(store, "nothing/here/") == []


def test_a_missing_object_is_missing(store: Store) -> None:
    store.put("a/b", b"x")
    for key in ("a/c", "a", "a/b/c", "a/" + "x" * 300):
        assert not store.exists(key)
        with pytest.raises(ObjectMissing):
            store.get(key)


def test_overwriting_changes_content_and_etag(store: Store) -> None:
    store.put("a/b", b"old")
    before = next(iter(store.list("a/"))).etag
    assert next(iter(store.list("a/"))).etag == before
    store.put("a/b", b"new")
    assert store.get("a/b") == b"new"
    assert next(iter(store.list("a/"))).etag != before


def test_a_read_and_a_look_say_what_the_listing_says(store: Store) -> None:
    for key in ("a/b", "a/b c ä+%2F.png", "a/bb"):
        store.put(key, key.encode())
    for info in store.list("a/"):
        fetched = store.fetch(info.key)
        assert (len(fetched.data), fetched.etag) == (info.size, info.etag)
        assert store.stat(info.key) == info
    for key in ("a/", "a/bbb", "a", "b"):
        assert store.stat(key) is None


def test_create_never_overwrites(store: Store) -> None:
    data = b"first"
    assert store.create("a/b", data)
    assert not store.create("a/b", data)  # the very same bytes object is no exception
    assert not store.create("a/b", b"second")
    assert store.get("a/b") == b"first"
    assert keys(store) == ["a/b"]


def test_of_two_that_create_at_once_the_first_wins(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The other writes after this one has found nothing there."""
    if isinstance(store, MemoryStore):
        pytest.skip("it checks and writes under a lock: test_one_of_many_creators_wins")
    store.put("a/b", b"first")
    with monkeypatch.context() as earlier:
        earlier.setattr(store, "exists", lambda _: False)
        won = store.create("a/b", b"second")
    # OpenStack's Swift, for one.
    knows_conditions = "knows no conditional writes" not in caplog.text
    assert won is not knows_conditions
    assert store.get("a/b") == (b"first" if knows_conditions else b"second")


@pytest.mark.server
def test_a_server_without_conditional_writes_is_checked_and_written_to(
    fake_aws: None, caplog: pytest.LogCaptureFixture
) -> None:
    """As OpenStack's Swift refuses them; it is said once, and not asked again."""
    objects: dict[str, bytes] = {}
    conditional = []

    class Swift(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("If-None-Match"):
                conditional.append(self.path)
                self._answer(501, b"<Error><Code>NotImplemented</Code><Message>no conditions</Message></Error>")
            else:
                objects[self.path] = data
                self._answer(200, b"")

        def do_HEAD(self) -> None:
            self._answer(200 if self.path in objects else 404, b"")

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            for name, value in {"ETag": '"e"', "Content-Length": len(body)}.items():
                self.send_header(name, str(value))
            self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            self.end_headers()
            self.wfile.write(body)

    with serving(Swift) as url:
        wire = WireSettings(retries=1, first_wait_seconds=0.01, longest_wait_seconds=0.01)
        store = S3Store("s3://cells", endpoint=url, wire=wire)
        assert store.create("k", b"first")
        asked = len(conditional)
        assert asked
        assert not store.create("k", b"second")
        assert store.create("l", b"third")
        assert objects == {"/cells/k": b"first", "/cells/l": b"third"}
        assert len(conditional) == asked
    assert caplog.text.count("knows no conditional writes (NotImplemented no conditions)") == 1


def test_large_and_empty_objects(store: Store) -> None:
    large = bytes(range(256)) * 50_000  # above obstore's part size of 5 MiB
    store.put("large", large)
    store.put("empty", b"")
    assert store.get("large") == large
    assert store.get("empty") == b""
    assert {info.key: info.size for info in store.list("")} == {"large": len(large), "empty": 0}


@pytest.mark.parametrize("key", ODD_KEYS)
def test_odd_keys_are_missing_and_are_never_written(store: Store, key: str) -> None:
    assert not store.exists(key)
    with pytest.raises((ObjectMissing, StoreUnreachable)):
        store.get(key)
    if not isinstance(store, MemoryStore):
        with pytest.raises(RetrainError, match="refused to write"):
            store.put(key, b"x")
        with pytest.raises(RetrainError, match="refused to write"):
            store.create(key, b"x")
        assert keys(store) == []


def test_one_of_many_creators_wins(tmp_path: Path) -> None:
    for store in (FolderStore(tmp_path), MemoryStore()):
        payloads = [str(number).encode() for number in range(32)]
        with ThreadPoolExecutor(16) as pool:
            won = list(pool.map(lambda data, store=store: store.create("k", data), payloads))
        assert won.count(True) == 1
        assert store.get("k") == payloads[won.index(True)]


def test_uris(tmp_path: Path) -> None:
    folder = tmp_path / "a b%20ü"
    folder.mkdir()
    store = open_store(folder.as_uri())
    store.put("k", b"x")
    assert (folder / "k").read_bytes() == b"x"
    assert open_store(store.uri).get("k") == b"x"
    open_store("memory://shared").put("k", b"x")
    assert open_store("memory://shared").exists("k")
    assert not open_store("memory://other").exists("k")


@pytest.mark.usefixtures("fake_aws")
@pytest.mark.parametrize(
    "uri",
    [
        "",
        "cells",
        "/data/cells",
        "file:relative",
        "file://host/share",
        "ftp://host/x",
        "s3://",
        "s3:///x",
        "s3://b/a//b",
    ],
)
def test_impossible_uris_are_refused(uri: str) -> None:
    with pytest.raises(SettingsError) as caught:
        open_store(uri)
    assert caught.value.hint


def test_folder_missing_or_gone(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "nothing")
    with pytest.raises(StoreUnreachable, match="no folder at") as caught:
        store.check()
    assert "retrain import" in caught.value.hint
    assert keys(store, "labeled/") == []


def test_folder_lists_past_what_cannot_be_named_or_read(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.put("labeled/A/good.png", b"x")
    (tmp_path / "labeled/A/dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "labeled/A/.tmp-1-0123abcd").write_bytes(b"half a file")
    Path(bytes(tmp_path / "labeled/A").decode() + "/bad\udcff.png").write_bytes(b"x")
    assert keys(store) == ["labeled/A/bad\\xff.png", "labeled/A/good.png"]


def test_folder_follows_no_link_out_of_a_folder_and_waits_for_no_pipe(tmp_path: Path) -> None:
    root, secret = tmp_path / "store", tmp_path / "secret"
    secret.mkdir()
    (secret / "key.html").write_bytes(b"secret")
    (root / "labeled" / "A").mkdir(parents=True)
    # A part of the store on another disk.
    (tmp_path / "large").mkdir()
    (root / "retraining").mkdir()
    (root / "retraining" / "reports").symlink_to(tmp_path / "large")
    (root / "labeled" / "B").symlink_to(tmp_path / "large")
    store = FolderStore(root)
    store.put("retraining/reports/x.html", b"report")
    assert store.get("retraining/reports/x.html") == (tmp_path / "large" / "x.html").read_bytes() == b"report"
    assert keys(store) == ["labeled/B/x.html", "retraining/reports/x.html"]
    (tmp_path / "large" / "same.html").symlink_to("x.html")
    assert store.get("retraining/reports/same.html") == b"report"
    (root / "labeled" / "A" / "a.png").symlink_to(secret / "key.html")
    (tmp_path / "large" / "b.html").symlink_to("../secret/key.html")
    (tmp_path / "large" / "c").symlink_to(secret)
    for key in ("labeled/A/a.png", "retraining/reports/b.html", "retraining/reports/c/key.html"):
        with pytest.raises(StoreUnreachable, match="a link out of its folder"):
            store.get(key)
    os.mkfifo(root / "labeled" / "A" / "pipe.png")
    with pytest.raises(StoreUnreachable, match="cannot read"):
        store.get("labeled/A/pipe.png")


def test_folder_prefixes_stay_inside(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "store").mkdir()
    store = FolderStore(tmp_path / "store")
    for prefix in ("../", "/", f"{tmp_path}/", "a/../../", "..", "x" * 300 + "/"):
        assert keys(store, prefix) == []


def test_folder_creates_where_hard_links_are_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    store = FolderStore(tmp_path)
    assert store.create("k", b"first")
    assert not store.create("k", b"second")
    assert store.get("k") == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["k"]


def test_folder_objects_are_files_of_this_machine(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.put("a/b", b"x")
    assert store.local_path("a/b") == tmp_path / "a/b"
    for key in ("a", "a/c", *ODD_KEYS):
        assert store.local_path(key) is None
    assert MemoryStore().local_path("a/b") is None
