"""The store in a folder: the embedded default."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from infra.local.files import is_temporary, leads_out, sync, write_atomic, write_beside
from infra.store.base import Fetched, ObjectInfo, Store, missing, refuse_odd
from infra.store.keys import OURS, is_odd
from validation.errors import ObjectMissing, StoreUnreachable

_NO_SUCH_FILE = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG)
# Reads of a file that changes while it is read.
_READS = 5
# Levels of folders that may be links.
_LINKED = 2


class FolderStore(Store):
    """A folder on this machine: the embedded default.

    The root and its first two levels of folders may be links, so that a part of it can be on another disk. Below them
    no link is followed out of the folder: whoever may add a file could otherwise have any file of this machine read.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.uri = self.root.as_uri()
        self._real = os.path.realpath(self.root)

    def check(self) -> None:
        if not self.root.is_dir():
            raise StoreUnreachable(
                f"no folder at {self.root} (store {self.uri})",
                "create it, put cells into it with `retrain import FOLDER`, or set RETRAIN_STORE",
            )
        if not os.access(self.root, os.R_OK | os.W_OK | os.X_OK):
            raise StoreUnreachable(f"no permission to read and write {self.root}", "check the folder's owner and mode")

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        # The walk starts at the deepest folder in the prefix, and never outside the root.
        folder_key = prefix.rpartition("/")[0]
        if "/" in prefix and is_odd(folder_key):
            return
        for key, entry in self.walk(f"{folder_key}/" if folder_key else ""):
            # A name that is not UTF-8 must not stop the listing; its escaped form is reported as missing later.
            text = key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            if not text.startswith(prefix):
                continue
            try:
                stat = entry.stat()
            except OSError:
                continue  # deleted meanwhile, or a dangling link
            yield ObjectInfo(text, stat.st_size, _etag(stat))

    def walk(self, folder_key: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
        """Yield every file below a folder (its key, with a slash at its end, or empty), by sorted names."""
        try:
            with os.scandir(self.root / folder_key) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            if error.errno not in _NO_SUCH_FILE:
                raise StoreUnreachable(
                    f"cannot list {error.filename}: {error.strerror}", "check the folder's owner and mode"
                ) from error
            return
        for entry in entries:
            if entry.is_dir(follow_symlinks=folder_key.count("/") < _LINKED):
                yield from self.walk(f"{folder_key}{entry.name}/")
            elif not is_temporary(entry.name) and not _is_folder(entry):
                yield f"{folder_key}{entry.name}", entry

    def fetch(self, key: str) -> Fetched:
        try:
            with open(self._path(key), "rb", opener=_at_once) as file:
                self._refuse_outside(key, file.fileno())
                for _ in range(_READS):
                    before = os.fstat(file.fileno())
                    file.seek(0)
                    data = file.read()
                    after = os.fstat(file.fileno())
                    if _etag(before) == _etag(after) and len(data) == after.st_size:
                        return Fetched(data, _etag(after))
        except OSError as error:
            if error.errno in _NO_SUCH_FILE:
                raise missing(self.uri, key) from error
            raise StoreUnreachable(
                f"cannot read {key!r} in {self.uri}: {error.strerror or error}",
                "check the file's owner and mode, and the disk",
            ) from error
        raise StoreUnreachable(f"{key!r} in {self.uri} changes while it is read", "write beside it and rename instead")

    def stat(self, key: str) -> ObjectInfo | None:
        path = self.local_path(key)
        try:
            status = path.stat() if path else None
        except OSError:
            return None
        return ObjectInfo(key, status.st_size, _etag(status)) if status else None

    def put(self, key: str, data: bytes) -> None:
        refuse_odd(self.uri, key)
        write_atomic(self._path(key), data)

    def exists(self, key: str) -> bool:
        return self.local_path(key) is not None

    def create(self, key: str, data: bytes) -> bool:
        refuse_odd(self.uri, key)
        path = self._path(key)
        # Written beside it, then linked: link() fails atomically when the name is taken.
        temporary = write_beside(path, data)
        try:
            path.hardlink_to(temporary)
        except OSError as error:
            if isinstance(error, FileExistsError) and path.is_file():
                return False
            # A folder has this name, or the file system has no hard links (exFAT, some shares).
            return super().create(key, data)
        finally:
            temporary.unlink()
        sync(path.parent)
        return True

    def _remove(self, key: str) -> None:
        path = self._path(key)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreUnreachable(
                f"cannot delete {key!r} in {self.uri}: {error.strerror}", "check the folder's owner and mode"
            ) from error
        if key.count("/") > 2:  # the folder of a candidate, after its last file
            with suppress(OSError):
                path.parent.rmdir()

    def unfinished(self) -> Iterator[tuple[Path, int]]:
        for path in (self.root / OURS).rglob(".tmp-*"):
            with suppress(OSError):  # finished meanwhile
                yield path, path.stat().st_size

    def local_path(self, key: str) -> Path | None:
        try:
            path = self._path(key)
            return path if path.is_file() else None
        except (ObjectMissing, OSError):  # an odd key, or a name too long for the file system
            return None

    def _refuse_outside(self, key: str, file: int) -> None:
        try:
            real = Path(f"/proc/self/fd/{file}").readlink()  # what was opened, whatever its name leads to by now
        except OSError:  # not Linux
            real = self.root / key
        if str(real) != f"{self._real}/{key}" and leads_out(real, self.root.joinpath(*key.split("/")[:-1][:_LINKED])):
            raise StoreUnreachable(f"{key!r} in {self.uri} is a link out of its folder", "put a copy in its place")

    def _path(self, key: str) -> Path:
        if is_odd(key):
            raise missing(self.uri, key)
        return self.root / key


def _etag(stat: os.stat_result) -> str:
    return f"{stat.st_mtime_ns:x}-{stat.st_size:x}-{stat.st_ino:x}"


def _at_once(path: str, flags: int) -> int:
    """Open a file; a pipe without a writer would otherwise be waited for."""
    return os.open(path, flags | os.O_NONBLOCK)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()  # also a link to a folder, which is not followed and is not an object
    except OSError:
        return False
