"""Temporary folders that tell whose they are, so that what a killed process left behind can be found and removed."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "retrain-"
_NAME = re.compile(rf"{PREFIX}(\d+)-")
# No temporary folder or file is in use for so long; process numbers alone do not tell, in containers that share a disk.
OLD_SECONDS = 1_800.0


@contextmanager
def temporary_folder(name: str) -> Iterator[Path]:
    """Yield a new folder for as long as it is needed."""
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-{name}-") as folder:
        yield Path(folder)


def abandoned_folders() -> list[Path]:
    """Return the temporary folders of this user whose process is gone."""
    found = []
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        named = _NAME.match(path.name)
        with suppress(OSError):
            if named and path.stat().st_uid == os.getuid() and is_abandoned(path, int(named[1])):
                found.append(path)
    return sorted(found)


def is_abandoned(path: Path, process: int) -> bool:
    """Whether the process that made ``path`` is gone, and that for long enough."""
    return not is_alive(process) and time.time() - path.stat().st_mtime > OLD_SECONDS


def is_alive(process: int) -> bool:
    """Whether there is a process of that number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    if not path.is_dir():
        return path.stat().st_size
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            with suppress(OSError):
                total += (Path(folder) / name).lstat().st_size
    return total
