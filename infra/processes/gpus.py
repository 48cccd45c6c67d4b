"""The GPUs of this machine, and one of them for each training, without loading a framework."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from infra.environment import visible_gpus
from infra.local.files import acquire_lock
from infra.processes.driver import VISIBLE, listed_gpus


def gpus() -> list[str]:
    """Return CUDA's names of the GPUs that this process may use; none on a machine without.

    Whether a framework can use them only the framework knows: ``retrain devices``.
    """
    visible = visible_gpus()
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    return [str(number) for number in range(listed_gpus())]


@contextmanager
def own_gpu(folder: Path) -> Iterator[dict[str, str]]:
    """Reserve one GPU of this machine; yield the variable by which a child uses it alone, or none without a GPU.

    With more trainings than GPUs the later ones wait. Each GPU has a lock file under ``folder``.
    """
    names = gpus()
    if not names:
        yield {}
        return
    with _lock_free_one(folder, names) as name:
        yield {VISIBLE: name}


@contextmanager
def _lock_free_one(folder: Path, names: Sequence[str]) -> Iterator[str]:
    while True:
        for name in names:
            if (lock := acquire_lock(folder / f"gpu-{name}.lock")) is not None:
                with lock:
                    yield name
                return
        time.sleep(1.0)
