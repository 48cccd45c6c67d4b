"""Prints the part of the lock that an image needs: ``python pick.py IMAGE`` beside pyproject.toml and the lock.

The lock names below each package the packages that require it (``# via``): an image gets the project's direct
dependencies except those in ``LEFT_OUT``, and everything they require. Standard library only: it runs before anything
is installed.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

FASTAI = ("torch", "torchvision", "fastai", "onnxscript")
KERAS = ("tensorflow", "keras", "tf2onnx")
# Image -> the project's direct dependencies that it leaves out. No image gets what only tests and checks need.
LEFT_OUT = {
    "orchestration": (*FASTAI, *KERAS),
    "fastai": (*KERAS, "great-expectations"),
    "keras": (*FASTAI, "great-expectations"),
}
_ENTRY = re.compile(r"^(?=[A-Za-z0-9])", re.MULTILINE)
_VIA = re.compile(r"^ +# via (.*)$", re.MULTILINE)


def package_name(requirement: str) -> str:
    """Return the name that a requirement starts with, as indexes compare it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]).lower()


def pick(image: str, lock: str, dependencies: list[str]) -> str:
    """Return the entries of ``lock`` that an image needs: each a line ``name==version ...``, hashes, and ``# via``."""
    # A package may have an entry for each platform, with versions of their own.
    entries = [(package_name(entry), entry) for entry in _ENTRY.split(lock)[1:]]
    parents: dict[str, set[str]] = defaultdict(set)
    for name, entry in entries:
        parents[name].update(package_name(parent) for line in _VIA.findall(entry) for parent in line.split(", "))
    needed = set(map(package_name, dependencies)) - set(LEFT_OUT[image])
    while more := {name for name in parents if name not in needed and parents[name] & needed}:
        needed |= more
    return "".join(entry for name, entry in entries if name in needed)


if __name__ == "__main__":
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    sys.stdout.write(pick(sys.argv[1], Path("requirements.txt").read_text(), project["dependencies"]))
