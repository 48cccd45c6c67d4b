"""Who runs this, which revision of the code, and on which machine."""

from __future__ import annotations

import os
import platform
import pwd
import re
import socket
import subprocess
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

from infra.environment import CODE_ROOT

UNKNOWN = "unknown"
# The libraries that a verdict depends on besides the two frameworks, whose versions are in their candidates' records.
LIBRARIES = (
    *("numpy", "pandas", "scikit-learn", "scipy", "onnxruntime", "pillow"),
    *("great-expectations", "mlflow", "prefect"),
)


def person() -> str:
    """Return who runs this process, as user@host. The environment is not consulted: anyone can set it."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user often has no name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


@dataclass(frozen=True)
class Revision:
    """The Git commit of the code, and whether files were changed since; ``unknown`` outside a checkout."""

    commit: str
    dirty: str


def code_revision(root: Path = CODE_ROOT) -> Revision:
    """Return the revision of the checkout that contains this code."""
    top = _git(root, "rev-parse", "--show-toplevel")
    # Installed into an environment inside another checkout: that checkout's revision says nothing.
    if top is None or Path(top).resolve() != root.resolve():
        return Revision(UNKNOWN, UNKNOWN)
    commit, changes = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain", "--untracked-files=no")
    dirty = UNKNOWN if changes is None else str(bool(changes)).lower()
    return Revision(commit or UNKNOWN, dirty)


def _git(root: Path, *arguments: str) -> str | None:
    try:
        # No optional locks: reading must not block a commit that is under way.
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(root), *arguments],
            capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def revision() -> str | None:
    """Return the Git commit of this code, with ``+`` when files were changed; None outside a checkout."""
    code = code_revision()
    return None if code.commit == UNKNOWN else code.commit + ("+" if code.dirty == "true" else "")


def hardware() -> str:
    """Return processor, cores this process may use, and memory, as one line for people."""
    cores = len(os.sched_getaffinity(0))
    memory = psutil.virtual_memory().total / 2**30
    processor = _read_field("/proc/cpuinfo", "model name") or platform.machine()
    return f"{processor}, {cores} core{'s' * (cores != 1)}, {memory:.0f} GiB memory, {platform.system()}"


def version() -> str:
    """Return this project's version; in a container image its code lies beside pyproject.toml, not installed."""
    try:
        return metadata.version("malaria-retraining")
    except metadata.PackageNotFoundError:
        return str(tomllib.loads((CODE_ROOT / "pyproject.toml").read_text())["project"]["version"])


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that judge and score."""
    installed = {"python": platform.python_version()}
    for name in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


def forget_peak_memory() -> None:
    """Reset the kernel's count of this process's peak memory, where it can (Linux; a container may forbid it)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb() -> float | None:
    """Return this process's peak memory since the last reset, in MB (10^6 bytes); None where it is not counted.

    Neither psutil nor ``getrusage`` can reset it, and ``ru_maxrss`` begins with the peak of the parent.
    """
    peak = _read_field("/proc/self/status", "VmHWM")
    return round(int(peak.split()[0]) * 1024 / 1e6, 1) if peak else None


def _read_field(file: str, name: str) -> str | None:
    """Return what follows the first ``name:`` in a file of /proc."""
    try:
        field = re.search(rf"^{name}\s*:\s*(.+)$", Path(file).read_text(errors="replace"), re.MULTILINE)
    except OSError:
        return None
    return field[1].strip() if field else None
