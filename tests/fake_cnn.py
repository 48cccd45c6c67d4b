"""A CNN that learns nothing, behind the real protocol: its "training" does what its recipe says, in no time.

It stands in where a test is about what surrounds a training. It imports neither framework, nor the stages.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tasks.models import Deadline, Device, FitResult, Images, Recipe, TrainingData
from tasks.models.progress import FitProgress
from tasks.models.schedule import Schedule
from tasks.models.selection import Selection
from validation.errors import TrainingFailed
from validation.records import EpochRecord

RECIPE_VERSION = 1


class OutOfMemoryError(RuntimeError):
    """Torch's own, by its name."""


class DefaultRecipe(Recipe):
    """``model`` is the path of the member's file that the training is to end with."""

    model: str = ""
    behaviour: Literal["good", "chatty", "diverges", "crashes", "page", "killed", "hangs", "silent", "large"] = "good"
    epochs: int = 2
    min_steps: int = 0
    batch_size: int = 8
    learning_rate: float = 1e-3
    warmup: float = 0
    patience: int = 1
    cooldown: int = 1
    deadline_seconds: float = 60
    # Of the real recipes, what the demo's settings file sets.
    architecture: str = ""
    small_share: float = 0
    dropout: float = 0


def fit(
    data: TrainingData,
    recipe: Any,
    *,
    seed: int,
    folder: Path,
    on_epoch: Callable[[EpochRecord], None],
) -> FitResult:
    """Report two epochs, do what the recipe says, and write down what was given as the weights."""
    history = tuple(
        EpochRecord(epoch=number, train_loss=0.5 / number, valid_loss=0.6 / number, valid_accuracy=0.9, seconds=0.01)
        for number in range(1, recipe.epochs + 1)
    )
    schedule = Schedule(recipe.epochs, recipe.cooldown, recipe.patience)
    FitProgress(schedule, Deadline(recipe.deadline_seconds), Selection(data)).rate(0, 5)
    for epoch in history:
        on_epoch(epoch)
    if recipe.behaviour == "large" and recipe.batch_size > 4:
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
    if recipe.behaviour == "chatty":
        sys.stdout.write("a framework's own words\n")
        os.write(1, b"\nnot json\n")
    elif recipe.behaviour == "diverges":
        raise TrainingFailed("loss became nan in epoch 2", "lower the learning rate")
    elif recipe.behaviour == "crashes":
        raise ZeroDivisionError("in the middle of a batch")
    elif recipe.behaviour == "page":
        raise RuntimeError("CUDA error: an illegal memory access\n\nFor debugging set A=1.\n  Or not.\n")
    elif recipe.behaviour == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif recipe.behaviour == "hangs":
        time.sleep(60)
    elif recipe.behaviour == "silent":
        sys.exit(0)
    onnx, weights = folder / "model.onnx", folder / "weights.json"
    onnx.write_bytes(Path(recipe.model).read_bytes())
    given = {
        "seed": seed,
        "train": [list(data.train_images.shape), int(data.train_images[:].sum()), data.train_labels.tolist()],
        "tuning": [list(data.tuning_images.shape), int(data.tuning_images[:].sum()), data.tuning_labels.tolist()],
        "patients": None if data.tuning_patients is None else data.tuning_patients.tolist(),
    }
    weights.write_text(json.dumps(given))
    return FitResult(onnx, weights, history, recipe.epochs, "finished", "cpu", {"fake": "1.0"}, temperature=1.0)


def predict_native(weights: Path, recipe: Any, images: Images) -> npt.NDArray[np.float32]:
    """Return one half for every image."""
    del weights, recipe
    return np.full(len(images), 0.5, np.float32)


def device() -> Device:
    """Return this machine's processor, and why not more."""
    return Device("cpu", "this CNN knows no GPU")
