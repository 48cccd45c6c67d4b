"""The callback for Keras: learning rate, early stopping, the kept weights.

Imported only by the process that trains with Keras.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tasks.models import Cells, Recipe
from tasks.models.keras.batches import scores
from tasks.models.preparation import finite, record_epoch
from tasks.models.progress import FitProgress
from validation.records import EpochRecord

SCORING_BATCH = 256

log = logging.getLogger(__name__)


class DeadlinePassed(Exception):
    """Ends model.fit between two batches: ``stop_training`` would validate the unfinished epoch first."""


def accuracy(labels: Any, logits: Any) -> Any:
    """Return the share of cells that are classified correctly at a probability of 0.5; labels may be smoothed."""
    from keras import ops

    return ops.mean(ops.cast(ops.equal(labels > 0.5, ops.reshape(logits, ops.shape(labels)) > 0), "float32"))


def journal(
    recipe: Recipe, progress: FitProgress, network: Any, images: Cells, on_epoch: Callable[[EpochRecord], None]
) -> Any:
    """Return the callback that sets the rate, records each epoch, keeps the weights in ``best_weights``, ends the fit.

    ``network`` scores ``images``, the tuning cells, uint8 [n, side, side, 3].
    """
    from keras.callbacks import Callback

    class Clock(Callback):  # type: ignore[misc]
        """Checks the deadline while the tuning cells are scored."""

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
            logits = scores(network, images, SCORING_BATCH, Clock())[:, 0]
            finite(float(np.sum(logits)), "keras", "tuning", progress)
            judged, loss, right = progress.selection.judge(logits), float(logs["loss"]), float(logs["accuracy"])
            record = record_epoch(progress, judged, self.started, loss=loss, accuracy=right, rate=self.rate)
            self.model.stop_training = progress.is_over
            log.info("keras epoch %d: %s", record.epoch, record.model_dump_json(exclude={"epoch"}))
            on_epoch(record)
            if record.is_kept:
                self.best_weights = self.model.get_weights()

    return Journal()
