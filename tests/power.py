"""Power cuts: what may lie on a disk afterwards, by what a program had made sure of and what it had not.

While a program writes below a folder, every call that changes a name or flushes is watched. A power cut may come before
and after each. What then survives is what POSIX promises and no more: a file's bytes as they were when it was last
flushed (fsync), or any mixture of them with what was written since; a folder's names as they were when the folder was
last flushed, or any of the changes made since.
"""

from __future__ import annotations

import itertools
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CHANGES = ("rename", "replace", "link", "unlink", "mkdir")
Names = dict[str, dict[str, int]]


@dataclass
class Power:
    """The supply of the disk below ``root``; every file has a number of its own, since inodes are used again."""

    root: Path
    cut: Callable[[str], None]
    flushed: dict[int, bytes] = field(default_factory=dict)
    names: Names = field(default_factory=dict)
    _numbers: dict[int, int] = field(default_factory=dict)
    _count: Iterator[int] = field(default_factory=itertools.count)

    def begin(self) -> None:
        """Believe what lies there now to have been there for long."""
        self.names, self.flushed = self._now()

    def left(self) -> Iterator[tuple[Names, dict[int, bytes]]]:
        """Yield what a power cut at this moment may leave: the names of each folder, and the bytes of each file."""
        names, contents = self._now()
        known = {**self.flushed, **contents}
        for entries in self._mixtures(names):
            for mixture in range(4):
                yield entries, {number: self._torn(number, data, mixture) for number, data in known.items()}

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        """Watch every change and every flush below the root from now on, with a power cut around each."""
        for name in CHANGES:
            patch.setattr(os, name, self._around(name, getattr(os, name)))
        patch.setattr(os, "fsync", self._around("fsync", os.fsync))

    def _around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            self.cut(f"before {name}")
            going = self._inodes() if name != "fsync" else {}
            answer = function(*arguments, **options)
            if name == "fsync":
                self._flush(arguments[0])
            for inode in going.keys() - self._inodes().keys():
                self._numbers.pop(inode, None)
            self.cut(f"after {name}")
            return answer

        return watched

    def _flush(self, file: Any) -> None:
        number = file if isinstance(file, int) else file.fileno()
        path = Path(f"/proc/self/fd/{number}").readlink()
        if not path.is_relative_to(self.root):
            return
        names, contents = self._now()
        if stat.S_ISDIR(os.fstat(number).st_mode):
            folder = path.relative_to(self.root).as_posix()
            self.names[folder] = names[folder]
        else:
            inode = self._number(os.fstat(number).st_ino)
            self.flushed[inode] = contents[inode]

    def _mixtures(self, now: Names) -> Iterator[Names]:
        """Yield the folders with none, each one, and all of the changes of names that were not flushed."""
        changes = [
            (folder, name)
            for folder in now.keys() | self.names.keys()
            for name in sorted(now.get(folder, {}).keys() | self.names.get(folder, {}).keys())
            if now.get(folder, {}).get(name) != self.names.get(folder, {}).get(name)
        ]
        for made in ([], *([change] for change in changes), changes):
            mixed = {folder: dict(self.names.get(folder, {})) for folder in now.keys() | self.names.keys()}
            for folder, name in made:
                there = now.get(folder, {}).get(name)
                if there is None:
                    mixed[folder].pop(name, None)
                else:
                    mixed[folder][name] = there
            yield mixed

    def _torn(self, number: int, data: bytes, mixture: int) -> bytes:
        """Return a file's bytes: as flushed; as they are now; cut in the middle; of the right length and empty."""
        flushed = self.flushed.get(number, b"")
        if data == flushed:
            return data
        middle = (len(flushed) + len(data)) // 2
        return (flushed, data, data[:middle], flushed[: len(data)].ljust(len(data), b"\0"))[mixture]

    def _now(self) -> tuple[Names, dict[int, bytes]]:
        names: Names = {}
        contents: dict[int, bytes] = {}
        for folder, folders, files in os.walk(self.root):
            here = names.setdefault(Path(folder).relative_to(self.root).as_posix(), {})
            # A folder below has no number of its own: it is known by its place.
            here.update(dict.fromkeys(folders, -1))
            for name in files:
                path = Path(folder, name)
                here[name] = self._number(path.stat().st_ino)
                contents[here[name]] = path.read_bytes()
        return names, contents

    def _number(self, inode: int) -> int:
        return self._numbers.setdefault(inode, next(self._count))

    def _inodes(self) -> dict[int, None]:
        found = (Path(folder, name) for folder, _, files in os.walk(self.root) for name in files)
        return dict.fromkeys(path.stat().st_ino for path in found)


def lay_out(folder: Path, names: Names, contents: dict[int, bytes]) -> None:
    """Make a folder hold just what a power cut has left."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    waiting = ["."]
    while waiting:
        place = waiting.pop()
        for name, number in names.get(place, {}).items():
            path = folder / place / name
            if number == -1:
                path.mkdir()
                waiting.append(path.relative_to(folder).as_posix())
            else:
                path.write_bytes(contents[number])


def cut_everywhere(
    root: Path,
    write: Callable[[], object],
    check: Callable[[Path, bool], None],
    patch: pytest.MonkeyPatch,
    *,
    only_after: bool = False,
) -> int:
    """Run ``write``, which writes below ``root``, and cut the power everywhere; return how many outcomes there were.

    ``check`` is given a folder that holds what was left, and whether ``write`` had returned by then; ``only_after``:
    the power is cut only then.
    """
    tried: set[str] = set()
    other = root.with_name(f"{root.name} after a power cut")

    def cut(_: str, *, returned: bool = False) -> None:
        if only_after and not returned:
            return
        with pytest.MonkeyPatch.context() as aside:
            for name, function in originals.items():
                aside.setattr(os, name, function)
            for names, contents in power.left():
                outcome = f"{returned} {sorted(names.items())} {sorted(contents.items())}"
                if outcome not in tried:
                    tried.add(outcome)
                    lay_out(other, names, contents)
                    check(other, returned)

    originals = {name: getattr(os, name) for name in (*CHANGES, "fsync")}
    power = Power(root, cut)
    power.begin()
    with patch.context() as watching:
        power.watch(watching)
        write()
    cut("at the end", returned=True)
    return len(tried)
