"""Installs the part of the lock that this machine needs into a virtual environment: ``python -m infra.deploy.install``.

make runs it from the repository's root, with the Python that the environment is to have. Standard library only.
Without ``--with`` it stays with what is installed, and chooses for this machine if nothing is.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from infra.deploy.images.pick import package_name, pick, required
from infra.processes.driver import listed_gpus
from validation.digest import digest

TRAINS = ("fastai", "keras", "keras-cpu")
TORCH = ("torch", "torchvision")
# What torch brings for GPUs; an older lock's write the files of today's.
CUDA = ("nvidia-", "cuda-", "triton")


@dataclass(frozen=True)
class Choice:
    """What is installed: the extras of pyproject.toml, and the index that torch comes from if not the lock's own."""

    extras: tuple[str, ...]
    dev: bool = False
    torch_index: str = ""


def choose(system: str, machine: str, gpus: int) -> tuple[tuple[str, ...], str]:
    """Return the smallest extras with which both CNNs train here as fast as the machine can, and why, as a sentence."""
    if (system, machine) != ("Linux", "x86_64"):
        return ("fastai", "keras"), f"{system} on {machine}: PyPI has no builds with CUDA for it"
    if gpus:
        return ("fastai", "keras"), f"{gpus} NVIDIA GPU{'s' * (gpus > 1)} here: both frameworks with CUDA"
    return (
        ("fastai", "keras-cpu"),
        "no NVIDIA GPU here: TensorFlow without CUDA; PyPI has no torch without its CUDA libraries, TORCH_INDEX=URL "
        "names an index that has",
    )


def parse(wanted: str) -> tuple[str, ...]:
    """Return the extras that ``WITH`` names: some of ``TRAINS``, or ``none``.

    Raises:
        ValueError: for any other name, and for both builds of TensorFlow.
    """
    names = tuple(wanted.replace(",", " ").split())
    if names == ("none",):
        return ()
    if not names or set(names) - set(TRAINS) or {"keras", "keras-cpu"} <= set(names):
        raise ValueError(f"WITH={wanted!r}: expected none, or fastai and one of keras and keras-cpu")
    return names


def part_of_lock(choice: Choice, lock: str, project: dict[str, Any]) -> str:
    """Return the entries of the lock for a choice: neither torch nor its CUDA libraries if torch is from elsewhere."""
    # setuptools installs this project itself.
    names = required(project, [*choice.extras, *["dev"] * choice.dev]) | {"setuptools"}
    if not choice.torch_index:
        return pick(lock, names)
    brought = locked(pick(lock, names)).keys() - locked(pick(lock, names, without=TORCH)).keys()
    return pick(lock, names | brought, without={name for name in brought if name.startswith(CUDA)} | {*TORCH})


def locked(lock: str) -> dict[str, str]:
    """Return the version of each package of a lock, of one platform if it has several."""
    lines = (line.split()[0].split("==") for line in lock.splitlines() if "==" in line and line[0].isalnum())
    return {package_name(name): version for name, version in lines}


def install(venv: Path, choice: Choice, lock: str, why: str) -> None:
    """Bring an environment in line with a choice: create it, remove what is in the way, install.

    Raises:
        SystemExit: when it was made by another Python.
        subprocess.CalledProcessError: when pip fails; it has said why.
    """
    started = time.monotonic()
    picked = venv / "lock.txt"
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    made = _ask(python, "import sys; print('%d.%d' % sys.version_info[:2])").strip()
    if made != f"{sys.version_info[0]}.{sys.version_info[1]}":
        raise SystemExit(f"{venv} was made by Python {made}, and this is {sys.version.split()[0]}: remove {venv} first")
    _say(f"installing into {venv}: {describe(choice)}")
    if why:
        _say(f"chosen for this machine ({why})")
        _say("to choose otherwise: WITH='fastai keras' | 'fastai keras-cpu' | one of them | none, behind the command")
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    part = part_of_lock(choice, lock, project)
    picked.write_text(part)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    add = [*pip, "install", "--quiet", "--no-deps"]
    here = set(_ask(python, _INSTALLED).split())
    wanted = locked(part)
    # Two packages of the same files: the one must go before the other comes.
    odd = sorted(name for name in here - wanted.keys() if name in locked(lock) or name.startswith(CUDA))
    if odd:
        subprocess.run([*pip, "uninstall", "--quiet", "--yes", *odd], check=True)
    if choice.torch_index and set(TORCH) & required(project, choice.extras):
        versions = [f"{name}=={locked(lock)[name]}" for name in TORCH]
        subprocess.run([*add, "--index-url", choice.torch_index, *versions], check=True)
    subprocess.run([*add, "--require-hashes", "-r", str(picked)], check=True)
    subprocess.run([*add, "--no-build-isolation", "-e", "."], check=True)
    size = sum(path.lstat().st_size for path in venv.rglob("*") if path.is_file())
    _say(f"installed {len(wanted)} packages, {size / 1e9:.1f} GB, in {time.monotonic() - started:.0f} s")


def describe(choice: Choice) -> str:
    """Return what a choice installs, for people."""
    what = " and ".join(choice.extras) or "no framework (nothing can be trained here)"
    index = f", torch from {choice.torch_index} without hashes" if choice.torch_index else ""
    return what + (", and what tests need" if choice.dev else "") + index


def describe_room(venv: Path) -> str:
    """Return how much room there is for an environment and for pip's downloads, for people."""
    places = {str(venv): venv.absolute().parent, tempfile.gettempdir(): Path(tempfile.gettempdir())}
    free = " and ".join(f"{shutil.disk_usage(path).free / 1e9:.1f} GB for {name}" for name, path in places.items())
    return f"when it began there were {free} (docs/operations.md says what an install takes; TMPDIR moves the latter)"


def main(arguments: Sequence[str] | None = None) -> None:
    """Install, unless what is wanted is installed already."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", type=Path, default=Path(".venv"))
    parser.add_argument("--with", dest="wanted", default="")
    parser.add_argument("--torch-index", default="")
    parser.add_argument("--dev", action="store_true", help="with what tests and checks need")
    given = parser.parse_args(arguments)
    lock = Path("requirements.txt").read_text()
    stamp = given.venv / ".installed"
    before = _stamped(stamp)
    why = ""
    try:
        if given.wanted:
            extras = parse(given.wanted)
        elif before:
            extras = before.extras
        else:
            extras, why = choose(platform.system(), platform.machine(), listed_gpus())
    except ValueError as error:
        raise SystemExit(str(error)) from None
    choice = Choice(
        extras,
        dev=given.dev or bool(before and before.dev),
        torch_index=given.torch_index or (before.torch_index if before else ""),
    )
    state = {"choice": asdict(choice), "inputs": digest(lock, Path("pyproject.toml").read_text())}
    if stamp.exists() and stamp.read_text() == json.dumps(state):
        return
    stamp.unlink(missing_ok=True)
    # Asked before it begins: pip removes what it downloaded, also when there was no room for it.
    room = describe_room(given.venv)
    try:
        install(given.venv, choice, lock, why)
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"the install failed: {error}; {room}") from None
    stamp.write_text(json.dumps(state))


_INSTALLED = """
from importlib.metadata import distributions
print(*{one.name.lower().replace("_", "-").replace(".", "-") for one in distributions()})
"""


def _stamped(stamp: Path) -> Choice | None:
    """Return what was chosen for an environment before."""
    try:
        choice = json.loads(stamp.read_text())["choice"]
        return Choice(tuple(choice["extras"]), choice["dev"], choice["torch_index"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _ask(python: Path, code: str) -> str:
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    main()
