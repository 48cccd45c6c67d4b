"""What a CNN trains on here, asked of its framework: ``python -m tasks.training.device CNN``, in a process of its own.

Standard output has one JSON object: ``device``, ``why_no_gpu`` and ``unused_gpu``, or ``error`` and ``hint``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from infra.environment import CODE_ROOT
from infra.inherited import of_work
from infra.processes.gpus import gpus
from tasks.models import Device, get_model
from validation.errors import RetrainError, TrainingFailed

UNUSED_HINT = "`retrain devices` says when it is fixed; RETRAIN_TRAINING__UNUSABLE_GPU=warn trains on the CPU"
INSTALL = '`make install WITH="fastai keras"` (without a GPU: WITH="fastai keras-cpu")'
SECONDS = 300.0


def ask_device(model: str) -> Device:
    """Return what a CNN trains on in this process, which loads its framework.

    Raises:
        TrainingFailed: when the framework is not installed, or cannot be loaded.
    """
    try:
        return get_model(model).device()
    except ModuleNotFoundError as error:
        raise TrainingFailed(
            f"{model} cannot be trained here: {error.name} is not installed", f"{INSTALL} adds it"
        ) from None
    except (ImportError, OSError) as error:
        # A library that the framework is linked to.
        raise TrainingFailed(
            f"{model} cannot be trained here: {error}", f"is the install whole? {INSTALL} does it again"
        ) from None


def unused_gpu(device: Device) -> str:
    """Return that there is a GPU and the framework does not use it, and why; empty if all is as it should be."""
    names = gpus() if device.name == "cpu" else []
    return f"GPU {', '.join(names)} is not used: {device.why_no_gpu}" if names else ""


def device_here(model: str) -> dict[str, Any]:
    """Return what a CNN trains on here, by its framework's word, from a process of its own."""
    command = [sys.executable, "-m", "tasks.training.device", model]
    try:
        done = subprocess.run(
            command, cwd=CODE_ROOT, env=of_work(os.environ),
            stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": f"{model}'s framework did not answer within {SECONDS:g} s", "hint": "run it again"}
    try:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (ValueError, IndexError):
        said = done.stderr.decode(errors="replace").strip().splitlines()
        return {"error": said[-1] if said else f"exit code {done.returncode}", "hint": f"see {' '.join(command)}"}


def main(model: str) -> None:
    """Print what ``model`` trains on in this process."""
    answers, sys.stdout = sys.stdout, sys.stderr
    try:
        device = ask_device(model)
        said = {"device": device.name, "why_no_gpu": device.why_no_gpu, "unused_gpu": unused_gpu(device)}
    except RetrainError as error:
        said = {"error": error.message, "hint": error.hint}
    answers.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
