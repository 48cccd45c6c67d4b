"""What a night ran on: the machine, the code's revision, the libraries that judge, and each stage's peak memory."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

from infra.origin import UNKNOWN, code_revision

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
