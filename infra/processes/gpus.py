"""Which GPUs this machine has, and one for each training that runs here. No framework is loaded to find out."""

from __future__ import annotations

import fcntl
import logging
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from infra.environment import environment_kept, visible_gpus

VISIBLE = "CUDA_VISIBLE_DEVICES"

log = logging.getLogger(__name__)


def gpus() -> list[str]:
    """Return the names by which CUDA knows the GPUs that this process may use; none on a machine without."""
    named = visible_gpus()
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        shown = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []  # a driver without a GPU, or the other way round: the CPU will do
    return [str(number) for number, _ in enumerate(line for line in shown.splitlines() if line.startswith("GPU "))]


def devices_of_a_training(wanted: int) -> int:
    """Return on how many devices a training that may have ``wanted`` runs here: no more GPUs than there are."""
    found = gpus()
    if not found or wanted <= len(found):
        return wanted
    log.warning("one training was to use %d GPUs, and this process may use %d: %s", wanted, len(found), found)
    return len(found)


@contextmanager
def own_gpus(folder: Path, wanted: int = 1) -> Iterator[list[str]]:
    """Keep ``wanted`` GPUs of this machine, or all there are, to this process and what it starts; yield their names.

    With more trainings than GPUs the later ones wait. A lock file for each GPU under ``folder``: the kernel lets go of
    it when the process dies.
    """
    names = gpus()
    if not names:
        yield []
        return
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack, environment_kept([VISIBLE]):
        files = {name: stack.enter_context((folder / f"gpu-{name}.lock").open("a")) for name in names}
        own = _first_free(files, min(wanted, len(names)))
        os.environ[VISIBLE] = ",".join(own)
        yield own


def _first_free(files: Mapping[str, IO[str]], count: int) -> list[str]:
    """Lock as many, or none while there are too few: two that hold a half each would wait for ever."""
    while True:
        own: list[str] = []
        for name, file in files.items():
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                own.append(name)
            if len(own) == count:
                return own
        for name in own:
            fcntl.flock(files[name], fcntl.LOCK_UN)
        # Not all at the same moment, or two would take each other's halves again and again.
        time.sleep(random.uniform(0.5, 1.5))  # noqa: S311  (no secret)
