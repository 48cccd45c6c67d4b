"""A store that fails, disks that are full or read-only, and two nights at once, by hand: every night recovers."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

from infra.store.s3 import S3Store
from tests.builders import channel_member, plain_cells
from tests.faults import Fault as Broken
from tests.faults import Proxy, running
from tests.nights import Nights, Told
from tests.sound import check_sound, inputs

pytestmark = [pytest.mark.server, pytest.mark.slow(minutes=1.3)]

WIRE = {"SILENCE_SECONDS": "0.5", "RETRIES": "2", "FIRST_WAIT_SECONDS": "0.01", "LONGEST_WAIT_SECONDS": "0.05"}


def refused_clearly(ended: Told, code: int, *words: str) -> None:
    """Check that a failed night prints its error in one line, and what to do in another."""
    assert ended.code == code, ended.err
    error, *rest = ended.err[("\n" + ended.err).rindex("\nerror: ") :].splitlines()
    assert any(word in error for word in words), error
    assert rest[0].startswith("  ")
    assert "unexpected" not in ended.err
    assert "Traceback" not in ended.err


@dataclass
class Outage(Proxy):
    """Breaks every answer from one request on, or every n-th answer."""

    begins: int = 0
    how: Broken = "reset"
    every: int = 0
    asked: int = 0

    def arrive(self, method: str, target: str) -> Broken | None:
        """Count a request; return how to break its answer."""
        super().arrive(method, target)
        self.asked += 1
        if self.every:
            return self.how if self.asked % self.every == 0 else None
        return self.how if self.begins and self.asked >= self.begins else None


@pytest.mark.longest
def test_a_store_that_is_away_cut_short_or_silent_from_a_random_moment_on(
    nights: Nights, moto_endpoint: str, fake_aws: None
) -> None:
    home = nights.home("outage", patients=0)
    bucket = f"cells-{uuid.uuid4().hex[:12]}"
    client = boto3.client("s3", endpoint_url=moto_endpoint, region_name="us-east-1")
    client.create_bucket(Bucket=bucket)
    client.close()
    store = S3Store(f"s3://{bucket}", endpoint=moto_endpoint)
    cells = plain_cells(30, 4)
    for key, data in cells.items():
        store.put(key, data)
    surroundings: dict[str, Any] = {
        "RETRAIN_STORE": store.uri,
        **{f"RETRAIN_WIRE__{name}": value for name, value in WIRE.items()},
        **{name: os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_CONFIG_FILE")},
    }
    rng = random.Random(3)
    with running(Outage(moto_endpoint)) as proxy:
        surroundings["RETRAIN_STORE_ENDPOINT"] = proxy.url
        for how, latest in (("truncated", 90), ("500", 40), ("hang", 30), ("reset", 30)):
            proxy.asked, proxy.begins, proxy.how = 0, rng.randint(1, latest), how  # type: ignore[assignment]
            ended = nights.run(home, **surroundings)
            refused_clearly(ended, 4, "cannot reach", "refused", "gave none of the last", "gave a part")
        # Back, but one answer in nine still fails.
        proxy.begins, proxy.how, proxy.every = 0, "503", 9
        assert nights.run(home, **surroundings).night["verdict"] == "promoted"
    assert check_sound(home, store=store.uri, store_endpoint=moto_endpoint) == ["1"]
    assert {info.key: store.get(info.key) for info in store.list("labeled/")} == cells


@dataclass
class Disk:
    """A small disk."""

    path: Path

    def leave(self, room: int) -> None:
        """Fill the disk up to ``room`` bytes."""
        self.free()
        left = shutil.disk_usage(self.path).free
        (self.path / "filler").write_bytes(bytes(max(0, left - room)))

    def free(self) -> None:
        (self.path / "filler").unlink(missing_ok=True)

    def remount(self, how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(self.path)], check=True)


@pytest.fixture
def disk(nights: Nights) -> Iterator[Disk]:
    folder = nights.folder / f"disk-{uuid.uuid4().hex[:6]}"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False) if shutil.which("mount") else None
    if done is None or done.returncode:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip() if done else 'no mount'}")
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("what", ["store", "home"])
def test_a_full_disk_of_the_store_or_of_the_cache(what: str, nights: Nights, disk: Disk) -> None:
    elsewhere = nights.home(f"full-{what}")
    if what == "store":
        home, place = elsewhere, disk.path / "store"
        shutil.copytree(elsewhere / "store", place)
    else:
        home, place = disk.path / "home", elsewhere / "store"
        shutil.copytree(elsewhere, home)
    before = inputs(place.parent)
    for room in (0, 300_000):
        disk.leave(room)
        ended = nights.run(home, RETRAIN_STORE=place.as_uri())
        if ended.code == 0:
            break
        # The registry reports a full disk under MLflow's database and files.
        refused_clearly(ended, ended.code, "No space left on device", "disk is full", "disk I/O error")
        assert ended.code in (1, 4)
    disk.free()
    assert nights.run(home, RETRAIN_STORE=place.as_uri()).night["champion_after"] == "1"
    assert check_sound(home, store=place.as_uri()) == ["1"]
    assert inputs(place.parent) == before


def test_a_registry_whose_disk_is_full_and_one_that_is_read_only(nights: Nights, disk: Disk) -> None:
    home = nights.home("registry")
    shutil.move(home / "mlflow.db", disk.path / "mlflow.db")
    registry = f"sqlite:///{disk.path / 'mlflow.db'}"
    disk.leave(0)
    refused_clearly(nights.run(home, RETRAIN_REGISTRY=registry), 4, "disk is full", "disk I/O error")
    disk.free()
    disk.remount("ro")
    ended = nights.run(home, RETRAIN_REGISTRY=registry)
    refused_clearly(ended, 4, "readonly database", "unable to open database file", "disk I/O error")
    assert "can be reached and written" in ended.err
    assert check_sound(home, registry=registry) == []
    disk.remount("rw")
    # Trained and judged already: only the promotion was missing.
    ended = nights.run(home, RETRAIN_REGISTRY=registry)
    assert ended.night["verdict"] == "promoted"
    assert "epoch" not in ended.err
    assert check_sound(home, registry=registry) == ["1"]


def test_of_two_nights_at_once_the_second_is_refused_and_the_first_goes_on(nights: Nights) -> None:
    home = nights.home("two")
    pipe = nights.folder / "held.onnx"
    os.mkfifo(pipe)
    first = nights.start(home, "run", "--json", **nights.recipe("fastai", model=str(pipe)))
    # Opens when the training has ended, and waits there.
    with pipe.open("wb") as held:
        refused = nights.run(home, "run", "--json")
        refused_clearly(refused, 1, f"another night is running on {home} (process {first[0]})")
        assert "wait for it to end" in refused.err
        beside = nights.folder / "next.onnx"
        beside.write_bytes(channel_member())
        beside.replace(pipe)  # the next member must find no pipe
        held.write(channel_member())
    assert nights.wait(first).night["verdict"] == "promoted"
    pipe.unlink()
    assert check_sound(home) == ["1"]
