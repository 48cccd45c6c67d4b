"""Files on this machine: atomic writes, the cache of fetched objects, and the night's lock.

Nothing here is the truth: all of it can be deleted and is made again from the store.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from validation.digest import sha256
from validation.errors import NightRunning, RetrainError

# A change of the champion takes seconds: registering a large model over a slow line some minutes.
CHAMPION_LOCK_SECONDS = 300.0
WRITE_HINT = "free some space, check the owner and mode of the folder, or choose another RETRAIN_HOME"


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` beside ``path`` and move it into place: no reader ever sees half a file, not after a power cut.

    Once it has returned, the new content outlives a power cut too: what is done next may rest on it.

    Raises:
        RetrainError: when the disk is full or the folder cannot be written.
    """
    temporary = write_beside(path, data)
    try:
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _cannot_write(path, error) from error
    sync_folder(path.parent)


def write_beside(path: Path, data: bytes) -> Path:
    """Write ``data`` whole into a new file beside ``path``, to be moved or linked there; return where it lies."""
    temporary = path.with_name(f".tmp-{os.getpid()}-{os.urandom(4).hex()}")
    try:
        _make_folder(path.parent)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                # Before the rename, or a power cut may leave the new name on an empty file.
                os.fsync(file.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _cannot_write(path, error) from error
    return temporary


def sync_folder(path: Path) -> None:
    """Let the names in a folder outlive a power cut; what they name is each file's own fsync."""
    _sync(path)


def sync_tree(path: Path) -> None:
    """Let a folder and all that lies in it outlive a power cut, whoever wrote it."""
    for folder, _, names in os.walk(path):
        for name in names:
            _sync(Path(folder, name))
        _sync(Path(folder))


def _sync(path: Path) -> None:
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
    except OSError as error:
        # Some shares know no fsync of a folder: there it is the server that must not lose its power.
        if error.errno != errno.EINVAL:
            raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> RetrainError:
    return RetrainError(f"cannot write {path}: {error.strerror or error}", WRITE_HINT)


def _make_folder(path: Path) -> None:
    """Make a folder and those above it, which outlive a power cut as what is written into them does."""
    if path.is_dir():
        return
    _make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def _replace_unflushed(path: str, data: bytes) -> None:
    temporary = f"{path}.tmp-{os.getpid()}-{threading.get_native_id()}"
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(file, left) :]
        finally:
            os.close(file)
        os.rename(temporary, path)  # noqa: PTH104
    except BaseException:
        os.unlink(temporary)  # noqa: PTH108
        raise


class Workspace:
    """What lies under ``RETRAIN_HOME`` on this machine: caches, packs, scratch, reports."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._made: set[str] = set()

    @property
    def reports(self) -> Path:
        """Local copies of the reports."""
        return self.home / "reports"

    def object_path(self, digest: str) -> Path:
        """Where the cached bytes with this SHA-256 lie. The name is a digest: no key ever becomes a path."""
        return Path(self._object_name(digest))

    def _object_name(self, digest: str) -> str:
        # As text: thousands of small files are read and written in a row, and a Path takes as long to make as to open.
        return f"{self.home}/cache/objects/{digest[:2]}/{digest[2:]}"

    def pack_path(self, pack: str) -> Path:
        """Where the array of a pack lies (.npy, uint8 [n, side, side, 3])."""
        return self.home / "cache" / "packs" / f"{pack}.npy"

    def scratch(self, name: str) -> Path:
        """A folder for work in progress."""
        path = self.home / "scratch" / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def read_object(self, digest: str) -> bytes | None:
        """Return the cached bytes with this SHA-256, or None; bytes that rotted are dropped, never believed.

        Plain system calls, as in ``write_object``.
        """
        path = self._object_name(digest)
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                data = os.read(file, os.fstat(file).st_size)
            finally:
                os.close(file)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RetrainError(
                f"cannot read the cache {path}: {error.strerror or error}", "delete it: it is made again"
            ) from error
        if sha256(data) != digest:
            Path(path).unlink(missing_ok=True)
            return None
        return data

    def write_object(self, data: bytes) -> str:
        """Cache ``data`` and return its SHA-256. No fsync: a torn file is noticed by its digest.

        Plain system calls, since thousands of small files are written here in a row.
        """
        name = sha256(data)
        path = self._object_name(name)
        folder = path.rpartition("/")[0]
        try:
            if folder not in self._made:
                os.makedirs(folder, exist_ok=True)  # noqa: PTH103
                self._made.add(folder)
            try:
                _replace_unflushed(path, data)
            except FileNotFoundError:  # somebody emptied the cache while we ran
                os.makedirs(folder, exist_ok=True)  # noqa: PTH103
                _replace_unflushed(path, data)
        except OSError as error:
            raise RetrainError(f"cannot write to the cache {path}: {error.strerror or error}", WRITE_HINT) from error
        return name

    @contextmanager
    def night_lock(self) -> Iterator[None]:
        """Hold the lock of this home folder for a night. The kernel lets go of it when the process dies.

        Raises:
            NightRunning: when another process holds it.
        """
        path = self.home / "night.lock"
        with _lock_file(path) as file:
            if not _locked(file, path):
                file.seek(0)
                raise NightRunning(
                    f"another night is running on {self.home} (process {file.read().strip() or 'unknown'})",
                    "wait for it to end, or use another RETRAIN_HOME",
                )
            # Whom to name; on a full disk nobody is named, and the lock holds all the same.
            with suppress(OSError):
                os.ftruncate(file.fileno(), 0)
                os.write(file.fileno(), str(os.getpid()).encode())
            yield

    @contextmanager
    def champion_lock(self) -> Iterator[None]:
        """Hold the lock of whoever changes the champion from this home folder; wait for it while others hold it.

        A night takes it within its own lock, for its promotion alone, so that a rollback need not wait for trainings.

        Raises:
            NightRunning: when it is not free within ``CHAMPION_LOCK_SECONDS``.
        """
        path = self.home / "champion.lock"
        until = time.monotonic() + CHAMPION_LOCK_SECONDS
        with _lock_file(path) as file:
            while not _locked(file, path):
                if time.monotonic() >= until:
                    raise NightRunning(
                        f"another process has been changing the champion of {self.home} for minutes",
                        "wait for it to end, then try again",
                    )
                time.sleep(0.1)
            yield


def _lock_file(path: Path) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+")
    except OSError as error:
        raise RetrainError(f"cannot open {path}: {error.strerror or error}", WRITE_HINT) from error


def _locked(file: IO[str], path: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise RetrainError(
            f"cannot lock {path}: {error.strerror or error}", "choose a RETRAIN_HOME on a local disk"
        ) from error
    return True
