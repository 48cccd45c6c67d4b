"""Temporary folders named after their process, so that those of a killed process can be found and removed."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

PREFIX = "retrain-"
_NAME = re.compile(rf"{PREFIX}(\d+)-")
# No temporary folder or file is in use for longer. Process ids alone are not enough: containers may share a disk.
OLD_SECONDS = 1_800.0


@contextmanager
def temporary_folder(name: str) -> Iterator[Path]:
    """Yield a new folder and remove it afterwards."""
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-{name}-") as folder:
        yield Path(folder)


def abandoned_folders() -> list[Path]:
    """Return the temporary folders of this user whose process has ended."""
    folders = []
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        process = _NAME.match(path.name)
        with suppress(OSError):
            if process and path.stat().st_uid == os.getuid() and is_abandoned(path, int(process[1])):
                folders.append(path)
    return sorted(folders)


def is_abandoned(path: Path, process: int) -> bool:
    """Return whether the process that made ``path`` has ended, and ``path`` has not changed for long enough."""
    try:
        alive = psutil.pid_exists(process)
    except OverflowError:  # larger than any process id
        alive = True
    return not alive and time.time() - path.stat().st_mtime > OLD_SECONDS


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    if not path.is_dir():
        return path.stat().st_size
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):  # removed meanwhile
                total += Path(folder, name).lstat().st_size
    return total
