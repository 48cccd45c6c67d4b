"""Pulls from a server that fails, sends wrong bytes, hangs or is gone; killed pulls; full disks."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pandas as pd
import pytest

from infra.local.files import Workspace
from infra.settings.groups import WireSettings
from infra.store.folder import FolderStore
from infra.store.records import Records
from infra.store.s3 import S3Store
from tasks.context import Context
from tasks.pull import pull
from tasks.snapshots import tables as snapshots
from tasks.snapshots.listing import list_cells
from tests import ROOT
from tests.builders import context_over, folder_context, small_settings, synthetic_cells
from tests.fake_s3 import FakeBucket, fake_bucket
from tests.faults import Fault, Proxy, proxy_before
from validation.digest import sha256
from validation.errors import RetrainError, StoreUnreachable
from validation.records import Snapshot

pytestmark = pytest.mark.thorough

CELLS = synthetic_cells(patients=6)
KEYS = sorted(CELLS)
BROKEN = KEYS[4]
FAST: dict[str, Any] = {"first_wait_seconds": 0.01, "longest_wait_seconds": 0.05, "retries": 3, "threads": 8}
# Long enough for an answer that is only slow: all eight come from this one process.
IMPATIENT = FAST | {"silence_seconds": 2.0}


@pytest.fixture
def proxy(moto_endpoint: str, fake_aws: None) -> Iterator[Proxy]:
    """A bucket with cells at moto's, and a proxy in front of it."""
    with proxy_before(moto_endpoint) as proxy:
        yield proxy


@pytest.fixture
def context(proxy: Proxy, moto_endpoint: str, home: Path) -> Context:
    bucket = f"cells-{uuid.uuid4().hex[:12]}"
    client = boto3.session.Session().client("s3", endpoint_url=moto_endpoint, region_name="us-east-1")
    client.create_bucket(Bucket=bucket)
    for key, data in CELLS.items():
        client.put_object(Bucket=bucket, Key=key, Body=data)
    client.close()
    return over_the_wire(f"s3://{bucket}", proxy, home, FAST)


def over_the_wire(uri: str, proxy: Proxy, home: Path, wire: dict[str, Any]) -> Context:
    return context_over(S3Store(uri, endpoint=proxy.url, wire=WireSettings(**wire)), home, wire=wire)


def table(context: Context, snapshot: Snapshot) -> pd.DataFrame:
    return context.records.load_table(snapshot.table).set_index("key")


@pytest.mark.server
@pytest.mark.parametrize("fault", ["500", "503", "hang", "reset", "reset midway", "truncated", "wrong", "empty"])
def test_a_failed_request_is_retried(context: Context, proxy: Proxy, fault: Fault, home: Path) -> None:
    if fault == "hang":
        context = over_the_wire(context.store.uri, proxy, home, IMPATIENT)
    proxy.fail(BROKEN, fault, fault)
    snapshot = pull(context)
    rows = table(context, snapshot)
    assert (rows["problem"] == "").all()
    assert rows["sha256"].to_dict() == {key: sha256(data) for key, data in CELLS.items()}
    assert proxy.gets(BROKEN) == 3
    assert proxy.gets() == len(CELLS) + 2


@pytest.mark.server
@pytest.mark.parametrize("fault", ["500", "503", "403", "reset", "truncated", "wrong", "empty"])
def test_an_object_that_keeps_failing_is_named_and_costs_only_itself(
    context: Context, proxy: Proxy, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.always(BROKEN, fault)
    with caplog.at_level(logging.WARNING):
        snapshot = pull(context)
    rows = table(context, snapshot)
    assert dict(rows.loc[BROKEN, ["sha256", "problem"]]) == {"sha256": "", "problem": "unreadable"}
    assert (rows["problem"] != "").sum() == 1
    lines = [record.getMessage() for record in caplog.records if BROKEN in record.getMessage()]
    assert len(lines) == 1
    assert {"403": "refused", "wrong": "other bytes", "empty": "other bytes"}.get(fault, "cannot reach") in lines[0]
    proxy.mend(BROKEN)
    repaired = table(context, pull(context))
    assert repaired.loc[BROKEN, "sha256"] == sha256(CELLS[BROKEN])


@pytest.mark.server
def test_a_store_that_lists_and_gives_nothing_ends_the_pull(
    context: Context, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.snapshots.fetching.GIVE_UP_AFTER", 16)
    proxy.always("", "503")
    with pytest.raises(StoreUnreachable, match="gave none of the last"):
        pull(context)
    # At most what was in flight when the pull gave up, and no snapshot of half of the bucket.
    assert proxy.gets() < len(CELLS) * (FAST["retries"] + 1)
    assert context.records.latest("snapshot", Snapshot) is None


@pytest.mark.server
def test_a_store_that_goes_away_in_the_middle_ends_the_pull_soon(context: Context, proxy: Proxy) -> None:
    proxy.always("", "reset")
    proxy.meanwhile[KEYS[0]] = lambda: proxy.always("list", "reset")
    with pytest.raises(StoreUnreachable, match="cannot reach"):
        pull(context)
    assert context.records.latest("snapshot", Snapshot) is None


@pytest.mark.server
def test_failed_pages_of_the_listing_are_retried(context: Context, proxy: Proxy) -> None:
    proxy.always("list", "500")
    proxy.meanwhile["list"] = lambda: proxy.mend("list")
    assert pull(context).objects == len(CELLS)
    assert sum("list-type" in seen.query for seen in proxy.seen) >= 2


@pytest.mark.server
def test_no_log_line_holds_a_secret_or_a_signature(
    context: Context, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.always(BROKEN, "500")
    with caplog.at_level(logging.DEBUG):
        pull(context)
    assert caplog.records
    for secret in ("test-secret", "test-key", "Signature", "X-Amz-Security"):
        assert secret not in caplog.text


PULL = (
    "import sys; from pathlib import Path; from tests.builders import context_over\n"
    "from infra.store.s3 import S3Store\n"
    "from tasks.pull import pull\n"
    "pull(context_over(S3Store(sys.argv[1], endpoint=sys.argv[2]), Path(sys.argv[3]), wire={'threads': 2}))"
)


@pytest.mark.server
def test_a_killed_pull_fetches_only_the_rest(context: Context, proxy: Proxy) -> None:
    proxy.always(KEYS[-1], "hang")
    arguments = [context.store.uri, proxy.url, str(context.workspace.home)]
    with subprocess.Popen([sys.executable, "-c", PULL, *arguments], cwd=ROOT) as child:
        journal: list[Path] = []
        until = time.monotonic() + 300
        while time.monotonic() < until and child.poll() is None:
            journal = list((context.workspace.home / "cache").glob("pulled-*.jsonl"))
            if journal and journal[0].read_text().count('"]\n') >= 10:
                break
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
    noted = journal[0].read_text().count('"]\n')
    assert 10 <= noted < len(CELLS)
    proxy.mend(KEYS[-1])
    proxy.seen.clear()
    snapshot = pull(context)
    assert proxy.gets() == len(CELLS) - noted
    assert table(context, snapshot)["sha256"].to_dict() == {key: sha256(data) for key, data in CELLS.items()}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A separate disk that is nearly full."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False) if shutil.which("mount") else None
    if done is None or done.returncode:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip() if done else 'no mount'}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_reported_and_harms_nothing(small_disk: Path, tmp_path: Path) -> None:
    source = folder_context(tmp_path / "source", {key: data + os.urandom(9_000) for key, data in CELLS.items()})
    full = Context(source.settings, source.store, source.records, Workspace(small_disk))
    with pytest.raises(RetrainError, match=r"cannot write .*No space left on device") as caught:
        pull(full)
    assert "free some space" in caught.value.hint
    assert not isinstance(caught.value, StoreUnreachable)
    assert source.records.latest("snapshot", Snapshot) is None
    shutil.rmtree(small_disk / "cache")
    assert pull(source).objects == len(CELLS)


@pytest.fixture
def bucket(fake_aws: None) -> Iterator[FakeBucket]:
    with fake_bucket(27_558) as bucket:
        yield bucket


@pytest.mark.server
def test_nothing_new_costs_only_the_listing(bucket: FakeBucket, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """27,558 objects, as many as the public archive has: 28 pages, the pointer, the record, the table and its part."""
    store = S3Store("s3://cells", endpoint=bucket.url)
    context = Context(small_settings(home, store=store.uri), store, Records(store), Workspace(home))
    leave_a_snapshot(context)
    bucket.requests.clear()
    fetched: list[str] = []
    monkeypatch.setattr(context.workspace, "write_object", fetched.append)
    snapshot = pull(context)
    assert (snapshot.objects, snapshot.new) == (27_558, 27_558)
    assert bucket.requests == {"LIST": 28, "GET": 4}
    assert fetched == []
    assert bucket.requests.total() <= 32


def leave_a_snapshot(context: Context) -> None:
    """Store what a pull of the whole bucket would have left, without fetching it."""
    listed = list_cells(context)
    frame = listed.to_pandas()
    frame["sha256"] = [sha256(key.encode()) for key in frame["key"]]
    frame["first_seen"] = "2026-01-01T00:00:00.000+00:00"
    import pyarrow as pa

    rows = pa.RecordBatch.from_pandas(frame[snapshots.ROWS.names], schema=snapshots.ROWS, preserve_index=False)
    snapshot = snapshots.save(context, rows, snapshots.snapshot_id(rows), before=None, parent=None)
    context.records.point("snapshot", snapshot)


def test_a_copy_that_rotted_is_noticed_and_fetched_again(tmp_path: Path) -> None:
    from tasks.snapshots.objects import read_object

    context = folder_context(tmp_path, CELLS)
    pull(context)
    assert isinstance(context.store, FolderStore)
    for number, (key, data) in enumerate(CELLS.items()):
        path = context.workspace.object_path(sha256(data))
        rot = (data[:-1], b"", bytes([data[0] ^ 1]) + data[1:])[number % 3]
        path.write_bytes(rot)
        assert read_object(context, key, sha256(data)) == data
        assert path.read_bytes() == data
