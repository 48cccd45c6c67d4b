"""Atomic writes, the cache, and the night's lock."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infra.local.files import Workspace, write_atomic
from tests import ROOT
from validation.digest import sha256
from validation.errors import NightRunning, RetrainError


@contextmanager
def disk_full_after(size: int) -> Iterator[None]:
    """Let the kernel refuse to let any file grow beyond ``size`` bytes: a write that fails in its middle."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_write_makes_its_folders_and_replaces_the_old(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    write_atomic(path, b"old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert files(tmp_path) == ["a/b/file"]


def test_a_write_that_fails_in_the_middle_leaves_the_old(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with disk_full_after(4096), pytest.raises(RetrainError, match="cannot write") as caught:
        write_atomic(path, b"x" * 100_000)
    assert "free some space" in caught.value.hint
    assert path.read_bytes() == b"old"
    assert files(tmp_path) == ["file"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RetrainError, match="file/below"):
        write_atomic(tmp_path / "file" / "below" / "x", b"x")


@pytest.mark.usefixtures("umask")
def test_modes_follow_the_umask(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    write_atomic(tmp_path / "file", b"x")
    cached = workspace.object_path(workspace.write_object(b"x"))
    assert oct((tmp_path / "file").stat().st_mode & 0o777) == "0o640"
    assert oct(cached.stat().st_mode & 0o777) == "0o640"


def test_the_cache_gives_back_what_was_put(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    digest = workspace.write_object(b"cell")
    assert digest == sha256(b"cell")
    assert workspace.write_object(b"cell") == digest
    assert workspace.read_object(digest) == b"cell"
    assert workspace.read_object(sha256(b"other")) is None


def test_a_rotten_object_is_dropped_and_can_be_cached_again(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    digest = workspace.write_object(b"cell")
    workspace.object_path(digest).write_bytes(b"sell")
    assert workspace.read_object(digest) is None
    assert not workspace.object_path(digest).exists()
    workspace.write_object(b"cell")
    assert workspace.read_object(digest) == b"cell"


def test_a_full_disk_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    with disk_full_after(4096), pytest.raises(RetrainError, match="cache") as caught:
        Workspace(tmp_path).write_object(b"x" * 100_000)
    assert "RETRAIN_HOME" in caught.value.hint
    assert files(tmp_path) == []


def test_scratch_is_there(tmp_path: Path) -> None:
    assert Workspace(tmp_path).scratch("train").is_dir()


def test_a_home_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "home").write_bytes(b"")
    with pytest.raises(RetrainError, match="cannot open"), Workspace(tmp_path / "home").night_lock():
        pass


def test_the_lock_excludes_and_is_given_back(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "home")
    with workspace.night_lock(), pytest.raises(NightRunning, match=str(os.getpid())), workspace.night_lock():
        pass
    with pytest.raises(ZeroDivisionError), workspace.night_lock():
        raise ZeroDivisionError
    with workspace.night_lock():
        pass


def test_the_lock_excludes_another_process_until_it_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from infra.local.files import Workspace\n"
        "with Workspace(Path(sys.argv[1])).night_lock():\n"
        "    print('locked', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as night:
        try:
            assert night.stdout
            assert night.stdout.readline() == b"locked\n"
            with pytest.raises(NightRunning, match=rf"process {night.pid}\b"), Workspace(tmp_path).night_lock():
                pass
        finally:
            night.send_signal(signal.SIGKILL)
    with Workspace(tmp_path).night_lock():
        assert (tmp_path / "night.lock").read_text() == str(os.getpid())
