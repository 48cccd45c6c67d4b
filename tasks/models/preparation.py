"""What both CNNs share around the framework's part: checks, batches and records of epochs.

NumPy only: both learn from the same cells in the same way, and this imports neither framework.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.models import Labels, Recipe, TrainingData, Variation
from tasks.models.progress import FitProgress
from tasks.models.schedule import Schedule
from tasks.models.selection import EpochComparison
from tasks.models.variation import augment
from validation.errors import TrainingFailed
from validation.records import EpochRecord

# fastai's XResNet halves a cell five times; a smaller one would vanish.
SMALLEST_SIDE = 32
BATCH_COLUMNS = 8
# A pixel belongs to the cell if one of its channels is brighter; the rest is padding, or the blur of its edge.
BLACK = 0.1
# Brings the colours of a cell, less their mean, to a spread of about one.
CONTRAST = 4.0
# Axes of [n, side, side, 3]: along each in turn a model file adds the mirror images of all views so far.
MIRRORED = {1: (), 2: (2,), 4: (2, 1)}


def check_data(data: TrainingData, name: str) -> None:
    """Refuse data that no recipe can learn from.

    Raises:
        TrainingFailed: when a class is missing in training, there are no tuning cells, or the arrays' shapes do not
            match.
    """
    side = data.train_images.shape[1] if data.train_images.ndim == 4 else 0
    for images, labels in ((data.train_images, data.train_labels), (data.tuning_images, data.tuning_labels)):
        if images.dtype != np.uint8 or images.shape[1:] != (side, side, 3) or labels.shape != (len(images),):
            raise TrainingFailed(
                f"{name}: expected uint8 [n, side, side, 3] with one label each,"
                f" found {images.dtype} {images.shape} with labels {labels.shape}",
                "run the night again",
            )
    if side < SMALLEST_SIDE:
        raise TrainingFailed(f"{name}: cells of {side} pixels a side are too small", f"the minimum is {SMALLEST_SIDE}")
    classes = {float(label) for label in np.unique(data.train_labels)}
    if classes != {0.0, 1.0} or not len(data.tuning_labels):
        raise TrainingFailed(
            f"{name}: expected training cells of both classes and some tuning cells,"
            f" found training labels {sorted(classes)} and {len(data.tuning_labels)} tuning cells",
            "more patients are needed",
        )


def batch_count(cells: int, batch_size: int) -> int:
    """Return the number of batches in an epoch over all cells, each of ``batch_size`` or slightly more."""
    return max(1, cells // batch_size)


def schedule_of(recipe: Recipe, cells: int, *, small_share: float = 0.0) -> Schedule:
    """Return the recipe's schedule, for a small set lengthened until it has ``min_steps`` steps.

    The losses of the first ``small_share`` of epochs are ignored.
    """
    planned = max(recipe.epochs, math.ceil(recipe.min_steps / batch_count(cells, recipe.batch_size)))
    return Schedule.scaled(
        planned,
        planned / recipe.epochs,
        cooldown=recipe.cooldown,
        patience=recipe.patience,
        warmup=recipe.warmup,
        first=round(planned * small_share),
    )


def shuffled_batches(cells: int, batch_size: int, seed: int, epoch: int) -> list[npt.NDArray[np.intp]]:
    """Return the shuffled indices of one epoch's batches.

    The cells are divided evenly: a last batch of one cell would break batch normalisation, and dropping it would waste
    small sets.
    """
    order = np.random.default_rng((seed, epoch)).permutation(cells)
    return np.array_split(order, batch_count(cells, batch_size))


def smoothed(labels: Labels, smoothing: float) -> Labels:
    """Return targets ``smoothing / 2`` away from 0 and 1, because some labels are wrong."""
    targets: Labels = labels * np.float32(1 - smoothing) + np.float32(smoothing / 2)
    return targets


def draw_batch(
    data: TrainingData, batch_size: int, variation: Variation, seed: int, folder: Path, *, epoch: int = 0
) -> Path:
    """Write the first training batch as the CNN saw it to ``batch.png``: two rows Parasitized, two rows Uninfected.

    It is drawn again from seed, ``epoch`` (the number of the first one) and batch number, as the training drew it.
    """
    from PIL import Image

    chosen = shuffled_batches(len(data.train_images), batch_size, seed, epoch)[0]
    images = augment(data.train_images[chosen], variation, np.random.default_rng((seed, epoch, 0)))
    positive, side = data.train_labels[chosen] > 0.5, images.shape[1]
    sheet = np.zeros((4, BATCH_COLUMNS, side, side, 3), np.uint8)
    for rows, of_class in ((sheet[:2], positive), (sheet[2:], ~positive)):
        shown = images[of_class][: 2 * BATCH_COLUMNS]
        flat = rows.reshape(-1, side, side, 3)
        flat[: len(shown)] = shown
    path = folder / "batch.png"
    Image.fromarray(sheet.transpose(0, 2, 1, 3, 4).reshape(4 * side, BATCH_COLUMNS * side, 3)).save(path)
    return path


def finite(loss: float, name: str, which: str, progress: FitProgress) -> float:
    """Return ``loss`` if it is a number.

    Raises:
        TrainingFailed: when it is not.
    """
    if not np.isfinite(loss):
        epoch = len(progress.history) + 1
        raise TrainingFailed(
            f"{name}: the {which} loss became {loss} in epoch {epoch}", "lower the recipe's learning_rate"
        )
    return loss


def record_epoch(
    progress: FitProgress, judged: EpochComparison, started: float, *, loss: float, accuracy: float, rate: float
) -> EpochRecord:
    """Append the epoch that has just ended to the history; ``loss`` and ``accuracy`` are those on training cells."""
    record = EpochRecord(
        epoch=len(progress.history) + 1,
        train_loss=loss,
        valid_loss=judged.loss,
        valid_accuracy=judged.accuracy,
        train_accuracy=accuracy,
        learning_rate=rate,
        temperature=judged.temperature,
        is_kept=judged.is_kept,
        seconds=time.monotonic() - started,
    )
    progress.history.append(record)
    return record


def refuse_no_epoch(progress: FitProgress, name: str, device: str) -> None:
    """Refuse a fit without a complete epoch.

    Raises:
        TrainingFailed: when the deadline passed within the first one.
    """
    if not progress.kept:
        raise TrainingFailed(
            f"{name}: no epoch ended within {progress.deadline.seconds:.0f} s on {device}",
            "raise the recipe's deadline_seconds, or train on fewer or smaller cells",
        )


def outcome(progress: FitProgress) -> dict[str, Any]:
    """Return the fields of FitResult that say how a fit went."""
    is_early = len(progress.history) < progress.schedule.epochs
    return {
        "history": tuple(progress.history),
        "best_epoch": progress.kept,
        "stopped": ("deadline" if progress.deadline.passed else "early") if is_early else "finished",
    }
