"""Where the members of a night are trained on this machine: how many at once, and with what each."""

from __future__ import annotations

import os

import psutil

from infra.processes.gpus import gpus

# What a training takes at most, with its libraries (docs/training.md), and what stays for all else.
BYTES_EACH = 3 * 2**30
# Small batches keep no more threads busy.
CORES_EACH = 2


def at_once(asked: int | None) -> int:
    """Return how many members are trained at once: ``asked``, else one for each GPU, or for every two cores.

    On CPUs no more than there is free memory for.
    """
    if asked is not None:
        return asked
    if found := gpus():
        return len(found)
    room = int(psutil.virtual_memory().available // BYTES_EACH)
    return max(1, min(_cores() // CORES_EACH, room))


def share_of_cores(count: int) -> dict[str, str]:
    """Return the variables by which each of ``count`` trainings takes as many threads as its share of the cores.

    A variable that a person passes on stays as it is.
    """
    names = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
    return {name: str(max(1, _cores() // count)) for name in names if name not in os.environ}


def _cores() -> int:
    return len(os.sched_getaffinity(0))
