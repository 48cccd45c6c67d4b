"""Which GPUs this machine has, and one for each training that runs here. No framework is loaded to find out."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from infra.settings import visible_gpus

VISIBLE = "CUDA_VISIBLE_DEVICES"


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


@contextmanager
def own_gpu(folder: Path) -> Iterator[str | None]:
    """Keep one GPU of this machine to this process and what it starts; yield its name, None where there is none.

    With more trainings than GPUs the later ones wait. A lock file for each GPU under ``folder``: the kernel lets go of
    it when the process dies.
    """
    names = gpus()
    if not names:
        yield None
        return
    folder.mkdir(parents=True, exist_ok=True)
    before = visible_gpus()
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / f"gpu-{name}.lock").open("a")) for name in names}
        name = _first_free(files)
        os.environ[VISIBLE] = name
        try:
            yield name
        finally:
            if before is None:
                del os.environ[VISIBLE]
            else:
                os.environ[VISIBLE] = before


def _first_free(files: Mapping[str, IO[str]]) -> str:
    while True:
        for name, file in files.items():
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return name
            except BlockingIOError:
                continue
        time.sleep(1)
