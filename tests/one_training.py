"""The real training process with a small XResNet18; it keeps every epoch, and comes to the harm that is named.

The environment names it. ``HARM=killed@1`` kills the second of the processes once there is a checkpoint; ``HARM=no
memory@0`` leaves the first none for batches of more than eight.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from infra.processes.parent import die_with_parent
from tasks.models import checkpoint, get_model
from tasks.training import child as train_child
from tests.small_xresnet import shrink


def harmed(name: str) -> Any:
    """Return the model, which has no memory for large batches."""
    model = get_model(name)
    fit = model.fit

    def fit_with_little_memory(data: Any, recipe: Any, **how: Any) -> Any:
        if recipe.batch_size > 8:
            raise MemoryError
        return fit(data, recipe, **how)

    model.fit = fit_with_little_memory  # type: ignore[method-assign]
    return model


def die_after_an_epoch(folder: Path) -> None:
    """Kill this process when an epoch has been kept."""
    while not (folder / checkpoint.NAME).exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    checkpoint.SECONDS_BETWEEN = 0.0
    train_child.PROGRAM = "tests.one_training"
    harm, _, rank = os.environ.get("HARM", "").partition("@")
    # The launcher of several has no rank, and trains nothing itself.
    here = rank == os.environ.get("RANK", "0") and ("RANK" in os.environ or "fastai" not in sys.argv[2])
    if "RANK" in os.environ:  # only fastai trains in several processes, and its launcher needs no framework
        shrink()
    if here and harm == "killed":
        threading.Thread(target=die_after_an_epoch, args=[Path(sys.argv[2])], daemon=True).start()
    elif here and harm == "no memory":
        train_child.get_model = harmed  # type: ignore[attr-defined]
    train_child.main(Path(sys.argv[2]), *sys.argv[3:])
