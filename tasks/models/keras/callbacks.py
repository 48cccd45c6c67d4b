"""What Keras is told to do between batches and epochs: its rate, when to end, which weights to keep, how to go on.

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
from validation.errors import TrainingFailed
from validation.records import EpochRecord

__all__ = ["SCORING_BATCH", "DeadlinePassed", "accuracy", "callbacks", "go_on"]

SCORING_BATCH = 256
# The number of the epoch that is kept: it rises when the newest is.
MONITORED = "kept_epoch"

log = logging.getLogger(__name__)


class DeadlinePassed(Exception):
    """Ends model.fit between two batches: ``stop_training`` would validate the unfinished epoch first."""


def accuracy(labels: Any, logits: Any) -> Any:
    """Return the share of cells that are called right at a probability of a half; labels may be smoothed."""
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
    """Return Keras's own keeper of the best weights, and all callbacks in their order.

    ``network`` scores ``images``, the validation cells, uint8 [n, side, side, 3].
    """
    from keras.callbacks import Callback, EarlyStopping

    cells = len(images)
    if short := -cells % devices:
        images = np.concatenate([images, images[:short]])  # no device may find its part of a batch empty
    scoring_batch = SCORING_BATCH // devices * devices

    class Keep(EarlyStopping):  # type: ignore[misc]
        """Keras's own, with what was before a kill in mind, and a checkpoint once it has made up its mind."""

        # The best weights of a killed process, until there are better ones.
        kept: Any = None

        def on_train_begin(self, logs: Any = None) -> None:
            super().on_train_begin(logs)
            if progress.best:
                self.best, self.best_weights = progress.best.epoch, self.kept
                self.best_epoch = progress.best.epoch - 1

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            super().on_epoch_end(epoch, logs)
            if progress.checkpoints.due:
                _keep(self.model, self.best_weights, progress)

    class Clock(Callback):  # type: ignore[misc]
        """Watches the clock while the validation cells are scored."""

        def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
            if progress.deadline.passed:
                raise DeadlinePassed

    class Journal(Callback):  # type: ignore[misc]
        """Sets the rate, watches clock and loss between batches; scores the validation cells, writes a record an epoch.

        In the place of Keras's own validation, which knows the plain loss only.
        """

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.started = time.monotonic()

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            self.rate = recipe.learning_rate * progress.rate(batch, self.params["steps"])
            self.model.optimizer.learning_rate = self.rate

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            _finite("training", logs["loss"])
            if progress.deadline.passed:
                raise DeadlinePassed

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            logits = scores(network, images, scoring_batch, Clock())[:cells, 0]
            _finite("validation", float(np.sum(logits)))
            judged = progress.selection.judge(logits)
            record = EpochRecord(
                epoch=epoch + 1,
                train_loss=float(logs["loss"]),
                valid_loss=judged.loss,
                valid_accuracy=judged.accuracy,
                train_accuracy=float(logs["accuracy"]),
                learning_rate=self.rate,
                temperature=judged.temperature,
                is_kept=judged.is_kept,
                seconds=time.monotonic() - self.started,
            )
            progress.history.append(record)
            logs[MONITORED] = progress.kept
            self.model.stop_training = progress.is_over
            log.info("keras epoch %d: %s", record.epoch, record.model_dump_json(exclude={"epoch"}))
            on_epoch(record)

    # It never stops the fit itself: the schedule does, by the journal.
    keep = Keep(monitor=MONITORED, mode="max", patience=progress.schedule.epochs + 1, restore_best_weights=True)
    return keep, [Journal(), keep]


def go_on(network: Any, keep: Any, progress: FitProgress) -> None:
    """Put network, optimiser, history and the best weights where the last checkpoint of this training left them."""
    saved = progress.checkpoints.find()
    if saved is None:
        return
    for variable, array in zip(_state(network), _in_order(saved.part("state")), strict=True):
        variable.assign(array)
    keep.kept = keep.best_weights = _in_order(saved.part("best")) or network.get_weights()
    progress.go_on(saved)
    log.info("keras goes on after epoch %d", progress.before)


def _keep(network: Any, best: Any, progress: FitProgress) -> None:
    arrays = {f"state/{number}": variable.numpy() for number, variable in enumerate(_state(network))}
    if progress.waited:
        arrays.update({f"best/{number}": np.asarray(array) for number, array in enumerate(best)})
    progress.save(arrays)


def _state(network: Any) -> list[Any]:
    """All that a step reads or changes: weights and statistics, the chance of dropout, the optimiser's moments."""
    return [*network.variables, *network.optimizer.variables]


def _in_order(arrays: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    return [arrays[name] for name in sorted(arrays, key=int)]


def _finite(which: str, loss: Any) -> float:
    if not np.isfinite(loss):
        raise TrainingFailed(f"keras: the {which} loss became {float(loss)}", "lower the recipe's learning_rate")
    return float(loss)
