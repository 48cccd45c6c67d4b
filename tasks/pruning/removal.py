"""What can be removed, why, and how."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from infra.local.temporary import is_abandoned, size_of
from validation.errors import RetrainError

# In the order in which they are listed.
AREAS = CACHES, TRAININGS, LEFTOVERS, STORE, REPORTS, REGISTRY = (
    "caches", "work folders", "left behind by killed processes", "store", "reports", "registry"
)  # fmt: skip

_WRITER = re.compile(r"\.tmp-(\d+)-")


@dataclass(frozen=True)
class Removal:
    """One thing that is not needed: ``size`` is the bytes that the disk or the bucket gets back."""

    area: str
    name: str
    size: int
    why: str
    remove: Callable[[], None]


def of_path(area: str, path: Path, why: str) -> Iterator[Removal]:
    """Yield the removal of a file or a folder; nothing when it is already gone."""
    with suppress(OSError):
        yield Removal(area, str(path), size_of(path), why, partial(remove_path, path))


def remove_path(path: Path) -> None:
    """Remove a file or a folder.

    Raises:
        RetrainError: when the disk refuses.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise RetrainError(f"cannot remove {path}: {error.strerror or error}", "check the owner and mode") from error


def left_behind(path: Path) -> bool:
    """Whether a temporary file's writer was killed."""
    named = _WRITER.search(path.name)
    with suppress(OSError):
        return named is not None and is_abandoned(path, int(named[1]))
    return False
