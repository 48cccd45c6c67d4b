"""Callbacks for Keras: learning rate, early stopping, the kept weights, checkpoints and their restoring.

Imported only by the process that trains with Keras.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.models import Images, Recipe
from tasks.models.checkpoint import FitProgress
from tasks.models.keras.batches import scores
from tasks.models.preparation import finite, record_epoch
from validation.records import EpochRecord

SCORING_BATCH = 256

log = logging.getLogger(__name__)


class DeadlinePassed(Exception):
    """Ends model.fit between two batches: ``stop_training`` would validate the unfinished epoch first."""


def accuracy(labels: Any, logits: Any) -> Any:
    """Return the share of cells that are classified correctly at a probability of 0.5; labels may be smoothed."""
    from keras import ops

    return ops.mean(ops.cast(ops.equal(labels > 0.5, ops.reshape(logits, ops.shape(labels)) > 0), "float32"))


def callbacks(
    recipe: Recipe,
    progress: FitProgress,
    network: Any,
    images: Images,
    on_epoch: Callable[[EpochRecord], None],
    devices: int,
) -> tuple[Any, list[Any]]:
    """Return the callback that keeps the best weights, in ``best_weights``, and all callbacks in order.

    ``network`` scores ``images``, the validation cells, uint8 [n, side, side, 3].
    """
    from keras.callbacks import Callback

    cells = len(images)
    if short := -cells % devices:
        images = np.concatenate([images, images[:short]])  # no device may get an empty part of a batch
    scoring_batch = SCORING_BATCH // devices * devices

    class Clock(Callback):  # type: ignore[misc]
        """Checks the deadline while the validation cells are scored."""

        def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
            if progress.deadline.passed:
                raise DeadlinePassed

    class Journal(Callback):  # type: ignore[misc]
        """Sets the rate, checks deadline and loss between batches; judges and records each epoch, keeps best weights.

        It replaces Keras's own validation, which only computes the plain loss.
        """

        best_weights: Any = None

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.started = time.monotonic()

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            self.rate = recipe.learning_rate * progress.rate(batch, self.params["steps"])
            self.model.optimizer.learning_rate = self.rate

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            finite(float(logs["loss"]), "keras", "training", progress)
            if progress.deadline.passed:
                raise DeadlinePassed

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            logits = scores(network, images, scoring_batch, Clock())[:cells, 0]
            finite(float(np.sum(logits)), "keras", "validation", progress)
            judged, loss, right = progress.selection.judge(logits), float(logs["loss"]), float(logs["accuracy"])
            record = record_epoch(progress, judged, self.started, loss=loss, accuracy=right, rate=self.rate)
            self.model.stop_training = progress.is_over
            log.info("keras epoch %d: %s", record.epoch, record.model_dump_json(exclude={"epoch"}))
            on_epoch(record)
            if record.is_kept:
                self.best_weights = self.model.get_weights()
            if progress.checkpoints.due:
                _save_checkpoint(self.model, self.best_weights, progress)

    journal = Journal()
    return journal, [journal]


def restore(network: Any, keep: Any, progress: FitProgress) -> None:
    """Restore network, optimiser, history and best weights from the last checkpoint of this training, if any."""
    saved = progress.checkpoints.find()
    if saved is None:
        return
    for variable, array in zip(_state(network), _in_order(saved.part("state")), strict=True):
        variable.assign(array)
    keep.best_weights = _in_order(saved.part("best")) or network.get_weights()
    progress.go_on(saved)
    log.info("keras resumes after epoch %d", progress.before)


def _save_checkpoint(network: Any, best: Any, progress: FitProgress) -> None:
    arrays = {f"state/{number}": variable.numpy() for number, variable in enumerate(_state(network))}
    if progress.waited:
        arrays.update({f"best/{number}": np.asarray(array) for number, array in enumerate(best)})
    progress.save(arrays)


def _state(network: Any) -> list[Any]:
    """Return all that a step reads or changes: weights, statistics, dropout's random state, optimiser's moments."""
    return [*network.variables, *network.optimizer.variables]


def _in_order(arrays: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    return [arrays[name] for name in sorted(arrays, key=int)]
