"""The sources of an import: a folder, a zip file or a bucket, listed alike, read file by file.

A zip file is untrusted: its names may point anywhere, its sizes may be false, its members may be damaged. Nothing is
unpacked to disk; a member is read into memory, up to a limit.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import IO

from infra.local.files import leads_out
from infra.store.base import Store
from infra.store.keys import SYNTHETIC_MARK, is_odd
from validation.errors import DataInvalid, ObjectMissing, UsageError

MAX_FILE_BYTES = 20_000_000  # the largest cell of the NLM set has 50 kB
_MAX_RATIO = 100  # of unpacked to packed size; images hardly compress at all
_SMALL = 1_000_000  # below this a high ratio is harmless
OUTSIDE = "a link out of the folder"
_LEFT_OUT = "it is left out; the others are not affected"
_TOO_LARGE = f"larger than {MAX_FILE_BYTES // 1_000_000} MB"


@dataclass(frozen=True)
class SourceFile:
    """One file of a source.

    Attributes:
        path: relative to the source, with ``/``.
        size: in bytes, as the source claims.
        read: returns the bytes; raises DataInvalid when they cannot be read.
        problem: why the file is left out unread; empty if it is not.
    """

    path: str
    size: int
    read: Callable[[], bytes]
    problem: str = ""


def folder_files(root: Path) -> list[SourceFile]:
    """List all files below ``root``, sorted by path; links are followed, except those that lead out of ``root``.

    Raises:
        UsageError: when a folder cannot be listed.
    """
    return sorted(_walk(root, root, "", frozenset()), key=lambda file: file.path)


def _walk(root: Path, folder: Path, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[SourceFile]:
    try:
        here = folder.stat()
        entries = list(os.scandir(folder))
    except OSError as error:
        raise UsageError(f"cannot list {folder}: {error.strerror}", "check the folder's owner and mode") from error
    if (here.st_dev, here.st_ino) in above:
        return  # a link to a parent folder: following it would never end
    for entry in entries:
        path = f"{prefix}{entry.name}"
        # An unpacked archive may link to any file of whoever imports it.
        if entry.is_symlink() and leads_out(Path(entry.path), root):
            yield SourceFile(path, 0, partial(_refuse, entry.path), OUTSIDE)
        # False for whatever cannot be examined, for example a link to itself.
        elif os.path.isdir(entry.path):  # noqa: PTH112
            yield from _walk(root, Path(entry.path), f"{path}/", above | {(here.st_dev, here.st_ino)})
        else:
            yield plain_file(Path(entry.path), path)


def _refuse(path: str) -> bytes:
    raise DataInvalid(f"cannot read {path}: {OUTSIDE}", _LEFT_OUT)


def plain_file(file: Path, path: str) -> SourceFile:
    """Return a file of this machine, called ``path``; a pipe, a device or a huge one has a problem."""

    def read() -> bytes:
        try:
            return file.read_bytes()
        except OSError as error:
            raise DataInvalid(f"cannot read {file}: {error.strerror}", _LEFT_OUT) from error

    try:
        info = file.stat()
    except OSError:
        return SourceFile(path, 0, read, "unreadable")
    if not stat.S_ISREG(info.st_mode):
        return SourceFile(path, 0, read, "not a plain file")
    return SourceFile(path, info.st_size, read, _TOO_LARGE if info.st_size > MAX_FILE_BYTES else "")


def bucket_files(store: Store) -> list[SourceFile]:
    """List the objects of a bucket, sorted by key.

    Raises:
        UsageError: when its cells are synthetic.
        StoreUnreachable: when it does not answer.
    """
    store.check()
    if store.exists(SYNTHETIC_MARK):
        raise UsageError(
            f"the cells in {store.uri} are synthetic, and must not be mixed with real ones", "name another source"
        )
    infos = sorted(store.list(""), key=lambda info: info.key)
    return [
        SourceFile(
            info.key, info.size, partial(_object, store, info.key), _TOO_LARGE if info.size > MAX_FILE_BYTES else ""
        )
        for info in infos
    ]


def _object(store: Store, key: str) -> bytes:
    try:
        return store.get(key)
    except ObjectMissing as error:
        raise DataInvalid(error.message, _LEFT_OUT) from error


@contextmanager
def zip_files(path: Path) -> Iterator[list[SourceFile]]:
    """List the members of a zip file in its order; they are readable while the context is open.

    Raises:
        DataInvalid: when it is not a valid zip file, was cut off, or its members overlap.
        UsageError: when it cannot be opened.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", "check the file's owner and mode") from error
    with file, _open(file, path) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        # Members that share their bytes are harmless alone, and together fill any disk.
        if sum(member.compress_size for member in members) > path.stat().st_size:
            raise DataInvalid(
                f"{path} claims to hold more than its own size: its members overlap",
                "it is damaged or malicious: get the archive again from a source that you trust",
            )
        lock = Lock()
        yield [
            SourceFile(_name(member), member.file_size, partial(_read, archive, member, lock), _problem(member))
            for member in members
        ]


def _open(file: IO[bytes], path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, OSError) as error:
        expected = "expected a zip of Parasitized/*.png and Uninfected/*.png"
        if path.stat().st_size and tarfile.is_tarfile(path):
            raise DataInvalid(
                f"{path} is a tar archive; {expected}", "unpack it (tar -xf), and import the folder"
            ) from error
        raise DataInvalid(
            f"{path} is not a valid zip file, or its end is missing ({error})",
            f"{expected}: copy or download it again, or import a folder",
        ) from error


def _name(member: zipfile.ZipInfo) -> str:
    """Return a member's name; macOS writes UTF-8 without the flag for it, which is then decoded as code page 437."""
    if not member.flag_bits & 0x800:
        with suppress(UnicodeError):
            return member.filename.encode("cp437").decode("utf-8")
    return member.filename


def _problem(member: zipfile.ZipInfo) -> str:
    kind = stat.S_IFMT(member.external_attr >> 16)
    name = member.orig_filename  # before zipfile cut it at a NUL
    checks = {
        "unsafe name": is_odd(name) or "\\" in name or re.match(r"[A-Za-z]:", name),
        "symbolic link": stat.S_ISLNK(kind),
        "not a plain file": kind not in (0, stat.S_IFREG, stat.S_IFLNK),
        "encrypted": member.flag_bits & 0x1,
        "unknown compression": member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED),
        _TOO_LARGE: member.file_size > MAX_FILE_BYTES,
        f"unpacks to more than {_MAX_RATIO} times its size": (
            member.file_size > _SMALL and member.file_size > _MAX_RATIO * member.compress_size
        ),
    }
    return next((reason for reason, failed in checks.items() if failed), "")


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, lock: Lock) -> bytes:
    try:
        # zipfile counts its open members without a lock.
        with lock, archive.open(member) as file:
            # zipfile unpacks no more than the directory states, then compares the checksum.
            data = file.read(MAX_FILE_BYTES)
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, NotImplementedError) as error:
        raise DataInvalid(f"{member.filename!r} is damaged: {error}", _LEFT_OUT) from error
    except RuntimeError as error:  # what zipfile raises if only the member's own header says that it is encrypted
        raise DataInvalid(f"{member.filename!r} is encrypted", _LEFT_OUT) from error
    if len(data) != member.file_size:
        raise DataInvalid(f"{member.filename!r} is damaged: {len(data)} of {member.file_size} bytes", _LEFT_OUT)
    return data
