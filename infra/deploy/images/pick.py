"""Prints the part of the lock that an image needs: ``python pick.py IMAGE`` beside pyproject.toml and the lock.

The lock names below each package the packages that require it (``# via``): picked are some requirements, and everything
they require. Standard library only: it runs before anything is installed.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

# Image -> the extras of pyproject.toml that it gets. What tests and checks need is in none.
IMAGES: dict[str, tuple[str, ...]] = {"orchestration": (), "fastai": ("fastai",), "keras": ("keras",)}
# Only the night's own process looks at a whole batch of cells.
LEFT_OUT = {"fastai": {"great-expectations"}, "keras": {"great-expectations"}}
_ENTRY = re.compile(r"^(?=[A-Za-z0-9])", re.MULTILINE)
_VIA = re.compile(r"^ +# via (.*)$", re.MULTILINE)


def package_name(requirement: str) -> str:
    """Return the name that a requirement starts with, as indexes compare it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]).lower()


def required(project: dict[str, Any], extras: Iterable[str]) -> set[str]:
    """Return the names that the table ``project`` of pyproject.toml requires itself and for some of its extras."""
    lines = [*project["dependencies"], *(line for one in extras for line in project["optional-dependencies"][one])]
    return set(map(package_name, lines))


def pick(lock: str, names: Iterable[str], without: Collection[str] = ()) -> str:
    """Return the entries of ``lock`` that ``names`` need: each a line ``name==version ...``, hashes, and ``# via``.

    What only packages of ``without`` need is left out with them.
    """
    # A package may have an entry for each platform, with versions of their own.
    entries = [(package_name(entry), entry) for entry in _ENTRY.split(lock)[1:]]
    parents: dict[str, set[str]] = defaultdict(set)
    for name, entry in entries:
        parents[name].update(package_name(parent) for line in _VIA.findall(entry) for parent in line.split(", "))
    needed = set(names) - set(without)
    while more := {name for name in parents.keys() - needed - set(without) if parents[name] & needed}:
        needed |= more
    return "".join(entry for name, entry in entries if name in needed)


def pick_image(image: str, lock: str, project: dict[str, Any]) -> str:
    """Return the entries of ``lock`` that an image needs."""
    return pick(lock, required(project, IMAGES[image]) - LEFT_OUT.get(image, set()))


if __name__ == "__main__":
    table = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    sys.stdout.write(pick_image(sys.argv[1], Path("requirements.txt").read_text(), table))
