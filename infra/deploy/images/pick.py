"""Picks from the lock what an image needs: ``python pick.py requirements.txt NAME.without > lock.txt``.

``NAME.without`` lists the packages that an image leaves out; ``python infra/deploy/images/pick.py --renew`` writes
these lists from what is installed: whatever only the packages of ``LEFT_OUT`` need. Standard library only: it runs
before anything is installed.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

FASTAI = ("torch", "torchvision", "fastai", "onnxscript")
KERAS = ("tensorflow", "keras", "tf2onnx")
# Image -> the project's direct dependencies that it leaves out. Nobody gets what only tests and checks need.
LEFT_OUT = {
    "orchestration": (*FASTAI, *KERAS),
    "fastai": (*KERAS, "great-expectations"),
    "keras": (*FASTAI, "great-expectations"),
}


def canonical(name: str) -> str:
    """Return a package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pick(lock: str, without: Iterable[str]) -> str:
    """Return the lock without some packages: each is a line ``name==version ...`` and its indented hashes."""
    unwanted = {canonical(name) for name in without}
    kept, keep = [], True
    for line in lock.splitlines():
        if line and not line.startswith((" ", "#")):
            keep = canonical(re.split(r"[=\[ ;]", line, maxsplit=1)[0]) not in unwanted
        if keep:
            kept.append(line)
    return "\n".join(kept) + "\n"


def needed(requirements: Iterable[str]) -> set[str]:
    """Return all packages that some requirements need, themselves included, by what is installed."""
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    waiting = [part for line in requirements for part in _parts(line, "")]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        found.add(name)
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # for another platform
        waiting.extend(part for line in lines for part in _parts(line, extra))
    return found


def without(image: str, project: Path = Path("pyproject.toml")) -> list[str]:
    """Return the packages that an image leaves out, from what is installed here."""
    facts = tomllib.loads(project.read_text())["project"]
    direct: list[str] = facts["dependencies"]
    tools: list[str] = facts["optional-dependencies"]["dev"]
    kept = [line for line in direct if _parts(line, "")[0][0] not in LEFT_OUT[image]]
    return sorted(needed([*direct, *tools]) - needed(kept))


def _parts(line: str, extra: str) -> list[tuple[str, str]]:
    """Return a requirement's package, once plain and once with each of its extras, where its marker holds here."""
    from packaging.requirements import Requirement

    wanted = Requirement(line)
    if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
        return []
    return [(canonical(wanted.name), part) for part in ("", *sorted(wanted.extras))]


def main(arguments: list[str]) -> None:
    """Print a lock, or renew the lists."""
    if arguments == ["--renew"]:
        for image in LEFT_OUT:
            Path(__file__).with_name(f"{image}.without").write_text("\n".join(without(image)) + "\n")
        return
    lock, leave_out = (Path(argument).read_text() for argument in arguments)
    sys.stdout.write(pick(lock, leave_out.split()))


if __name__ == "__main__":
    main(sys.argv[1:])
