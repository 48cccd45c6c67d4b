"""Where a change comes from: the person at this machine, and the revision of the code that runs."""

from __future__ import annotations

import os
import platform
import pwd
import socket
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from infra.environment import CODE_ROOT

UNKNOWN = "unknown"


def person() -> str:
    """Return who runs this process, as user@host. The environment is not asked: anybody can set it."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user often has no name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


@dataclass(frozen=True)
class Revision:
    """The Git commit of the code, and whether it was changed since; ``unknown`` where there is no checkout."""

    commit: str
    dirty: str


def code_revision(root: Path = CODE_ROOT) -> Revision:
    """Return the revision of the checkout that this code lies in."""
    top = _git(root, "rev-parse", "--show-toplevel")
    # Installed into an environment that lies inside somebody else's checkout, that one's revision says nothing.
    if top is None or Path(top).resolve() != root.resolve():
        return Revision(UNKNOWN, UNKNOWN)
    commit, changes = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain", "--untracked-files=no")
    dirty = UNKNOWN if changes is None else str(bool(changes)).lower()
    return Revision(commit or UNKNOWN, dirty)


def _git(root: Path, *arguments: str) -> str | None:
    try:
        # No optional locks: looking must not get into the way of somebody who is committing.
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(root), *arguments],
            capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


# What a verdict rests on besides the two frameworks, whose versions stand with their candidates.
LIBRARIES = (
    "numpy",
    "pandas",
    "scikit-learn",
    "scipy",
    "onnxruntime",
    "pillow",
    "great-expectations",
    "mlflow",
    "prefect",
)


def hardware() -> str:
    """Return processor, cores this process may use, and memory, as one line for people."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{_processor()}, {cores} core{'s' * (cores != 1)}, {memory:.0f} GiB memory, {platform.system()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def revision() -> str | None:
    """Return the git revision of this code, ``+`` behind it when files were changed; None outside a checkout."""
    found = code_revision()
    if found.commit == UNKNOWN:
        return None
    return found.commit + ("+" if found.dirty == "true" else "")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that judge and score."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def forget_peak_memory() -> None:
    """Let the kernel count this process's peak memory anew, where it can (Linux; a container may forbid it)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory_mb() -> float | None:
    """Return this process's peak memory since it was last forgotten, in MB (10^6 bytes); None if nobody counts."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) * 1024 / 1e6, 1)
    return None
