"""The GPUs of this machine, and exclusive GPUs for each training, without loading a framework."""

from __future__ import annotations

import logging
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from infra.environment import environment_kept, visible_gpus
from infra.local.files import acquire_lock

VISIBLE = "CUDA_VISIBLE_DEVICES"

log = logging.getLogger(__name__)


def gpus() -> list[str]:
    """Return CUDA's names of the GPUs that this process may use; none on a machine without."""
    visible = visible_gpus()
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        output = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []  # a driver without a GPU, or the reverse: train on the CPU
    return [str(number) for number in range(sum(line.startswith("GPU ") for line in output.splitlines()))]


def devices_of_a_training(wanted: int) -> int:
    """Return how many devices a training that may use ``wanted`` gets here: no more GPUs than there are."""
    names = gpus()
    if not names or wanted <= len(names):
        return wanted
    log.warning("one training was to use %d GPUs, and this process may use %d: %s", wanted, len(names), names)
    return len(names)


@contextmanager
def own_gpus(folder: Path, wanted: int = 1) -> Iterator[list[str]]:
    """Reserve ``wanted`` GPUs of this machine, or all there are, for this process and its children; yield their names.

    With more trainings than GPUs the later ones wait. Each GPU has a lock file under ``folder``.
    """
    names = gpus()
    if not names:
        yield []
        return
    with environment_kept([VISIBLE]), ExitStack() as locks:
        own = _lock_free_ones(folder, names, min(wanted, len(names)), locks)
        os.environ[VISIBLE] = ",".join(own)
        yield own


def _lock_free_ones(folder: Path, names: Sequence[str], count: int, locks: ExitStack) -> list[str]:
    """Lock ``count`` GPUs, or none while there are too few: two processes with half each would wait for ever."""
    while True:
        own: list[str] = []
        for name in names:
            if (lock := acquire_lock(folder / f"gpu-{name}.lock")) is not None:
                locks.enter_context(lock)
                own.append(name)
            if len(own) == count:
                return own
        locks.close()
        # At random moments, or two processes would take each other's halves again and again.
        time.sleep(random.uniform(0.5, 1.5))  # noqa: S311  (not a secret)
