"""Files under ``RETRAIN_HOME``: atomic writes, locks, and the cache of fetched objects.

All of it can be deleted: it is rebuilt from the store.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout

from validation.digest import sha256
from validation.errors import NightRunning, RetrainError

# A change of the champion takes seconds, or some minutes when a large model is registered over a slow line.
CHAMPION_LOCK_SECONDS = 300.0
_TEMPORARY = re.compile(r"\.tmp-\d+-[0-9a-f]{8}")
WRITE_HINT = "free some space, check the owner and mode of the folder, or choose another RETRAIN_HOME"


def write_atomic(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write ``data`` beside ``path`` and move it into place, so that no reader ever sees half a file.

    A ``durable`` write also survives a power cut once it has returned. Without it (no fsync) a power cut may leave a
    torn file: only for content that is checked by its digest.

    Raises:
        RetrainError: when the disk is full or the folder cannot be written.
    """
    temporary = write_beside(path, data, durable=durable)
    try:
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _cannot_write(path, error) from error
    if durable:
        sync(path.parent)


def write_beside(path: Path, data: bytes, *, durable: bool = True) -> Path:
    """Write ``data`` into a new file beside ``path``, to be moved or linked there; return the new file."""
    temporary = path.with_name(f".tmp-{os.getpid()}-{os.urandom(4).hex()}")
    try:
        _make_folder(path.parent, durable=durable)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                if durable:  # before the rename, or a power cut may leave the new name on an empty file
                    os.fsync(file.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _cannot_write(path, error) from error
    return temporary


def is_temporary(name: str) -> bool:
    """Whether ``write_beside`` may have made a file of this name."""
    return name.startswith(".tmp-") and _TEMPORARY.fullmatch(name) is not None


def sync(path: Path) -> None:
    """Flush a file to disk, or the names in a folder: each file in it needs its own flush."""
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
    except OSError as error:
        # Some network shares cannot flush a folder: there the server must survive the power cut.
        if error.errno != errno.EINVAL:
            raise _cannot_write(path, error) from error


def write_at(file: int, data: bytes, place: int) -> None:
    """Write all of ``data`` into an open file (its descriptor) from byte ``place`` on: one call may write less."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(file, rest, place)
        rest, place = rest[written:], place + written


def leads_out(path: Path, folder: Path) -> bool:
    """Whether ``path``, which lies in ``folder`` by its name, is somewhere else by its links."""
    real = os.path.realpath(folder)
    return os.path.commonpath([real, os.path.realpath(path)]) != real


def _make_folder(path: Path, *, durable: bool) -> None:
    """Create a folder and its parents, as durable as what is written into them."""
    if not path.is_dir():
        _make_folder(path.parent, durable=durable)
        path.mkdir(exist_ok=True)
        if durable:
            sync(path.parent)


def _cannot_write(path: Path, error: OSError) -> RetrainError:
    return RetrainError(f"cannot write {path}: {error.strerror or error}", WRITE_HINT)


def acquire_lock(path: Path, *, seconds: float = 0) -> AcquireReturnProxy[FileLock] | None:
    """Return the lock file ``path``, locked until the end of its ``with``; None when another process keeps it.

    The kernel releases the lock when the process dies.

    Raises:
        RetrainError: when the file cannot be opened or locked.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path, fallback_to_soft=False).acquire(timeout=seconds, poll_interval=0.1)
    except Timeout:
        return None
    except OSError as error:
        raise RetrainError(
            f"cannot open or lock {path}: {error.strerror or error}",
            "check the owner and mode of the folder, or choose a RETRAIN_HOME on a local disk with free space",
        ) from error


class Workspace:
    """The files under ``RETRAIN_HOME`` on this machine: caches, packs, scratch, reports."""

    def __init__(self, home: Path) -> None:
        self.home = home

    @property
    def reports(self) -> Path:
        """Local copies of the reports."""
        return self.home / "reports"

    @property
    def expectations(self) -> Path:
        """Great Expectations' project of the newest validation."""
        return self.home / "great_expectations"

    def object_path(self, digest: str) -> Path:
        """Return the path of the cached bytes with this SHA-256. The name is a digest: no key ever becomes a path."""
        return Path(f"{self.home}/cache/objects/{digest[:2]}/{digest[2:]}")

    def pack_path(self, pack: str) -> Path:
        """Return the path of a pack's array (.npy, uint8 [n, side, side, 3])."""
        return self.home / "cache" / "packs" / f"{pack}.npy"

    def scratch(self, name: str) -> Path:
        """Return a folder for work in progress."""
        path = self.home / "scratch" / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def read_object(self, digest: str) -> bytes | None:
        """Return the cached bytes with this SHA-256, or None; damaged bytes are dropped."""
        path = self.object_path(digest)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RetrainError(
                f"cannot read the cache {path}: {error.strerror or error}", "delete it: it is rebuilt"
            ) from error
        if sha256(data) != digest:
            path.unlink(missing_ok=True)
            return None
        return data

    def write_object(self, data: bytes) -> str:
        """Cache ``data`` and return its SHA-256. No fsync: ``read_object`` detects a torn file by its digest."""
        digest = sha256(data)
        write_atomic(self.object_path(digest), data, durable=False)
        return digest

    @contextmanager
    def night_lock(self) -> Iterator[None]:
        """Lock this home folder for a night.

        Raises:
            NightRunning: when another process has locked it.
        """
        path = self.home / "night.lock"
        lock = acquire_lock(path)
        if lock is None:
            raise NightRunning(
                f"another night is running on {self.home} (process {path.read_text().strip() or 'unknown'})",
                "wait for it to end, or use another RETRAIN_HOME",
            )
        with lock:
            with suppress(OSError):  # on a full disk the lock works all the same, without a name to show
                path.write_text(str(os.getpid()))
            yield

    @contextmanager
    def champion_lock(self) -> Iterator[None]:
        """Lock this home folder for a change of the champion, waiting up to ``CHAMPION_LOCK_SECONDS`` for others.

        A night takes it within its own lock, for its promotion alone, so that a rollback need not wait for trainings.

        Raises:
            NightRunning: when it is not free by then.
        """
        lock = acquire_lock(self.home / "champion.lock", seconds=CHAMPION_LOCK_SECONDS)
        if lock is None:
            raise NightRunning(
                f"another process has been changing the champion of {self.home} for minutes",
                "wait for it to end, then try again",
            )
        with lock:
            yield
