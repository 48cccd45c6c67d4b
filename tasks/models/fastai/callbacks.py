"""The callback for fastai's Learner: learning rate, early stopping, the kept weights.

Imported only by the process that trains with fastai.
"""

from __future__ import annotations

import contextlib
import io
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.models import Recipe
from tasks.models.preparation import finite, record_epoch
from tasks.models.progress import FitProgress
from validation.records import EpochRecord

log = logging.getLogger(__name__)

# At the peak rate and at rate 0, as in fastai's one-cycle.
MOMENTA = 0.85, 0.95


def state_of(model: Any) -> dict[str, Any]:
    """Return a copy of the weights and statistics, on the CPU."""
    return {key: tensor.detach().cpu().contiguous().clone() for key, tensor in model.state_dict().items()}


def journal(recipe: Recipe, progress: FitProgress, on_epoch: Callable[[EpochRecord], None]) -> Any:
    """Return the callback that sets the rate, records each epoch, keeps the best weights, and ends the fit."""
    from fastai.callback.core import Callback, CancelFitException
    from fastai.learner import Recorder

    class Journal(Callback):  # type: ignore[misc]
        """Sets the rate, checks deadline and loss between batches; judges and records each epoch, keeps best weights.

        After the fit the model has the weights of the kept epoch.
        """

        order = Recorder.order + 1
        best_weights: Any = None

        def before_epoch(self) -> None:
            self.started, self.loss_sum, self.seen, self.right = time.monotonic(), 0.0, 0, 0.0
            self.logits: list[npt.NDArray[np.float32]] = []

        def before_batch(self) -> None:
            if self.training:
                share = progress.rate(self.iter, self.n_iter)
                # Low momentum at a high rate (Smith 2018, arXiv:1803.09820).
                low, high = MOMENTA
                self.learn.opt.set_hypers(lr=recipe.learning_rate * share, mom=high - (high - low) * share)

        def after_batch(self) -> None:
            pred = self.learn.pred.detach()
            if self.training:
                cells = len(self.learn.y)
                self.loss_sum += cells * finite(float(self.learn.loss.detach()), "fastai", "training", progress)
                self.right += cells * float(accuracy(pred, self.learn.y))
                self.seen += cells
            else:
                self.logits.append(pred.flatten().float().cpu().numpy())
            if progress.deadline.passed:
                raise CancelFitException

        def after_epoch(self) -> None:
            judged = progress.selection.judge(np.concatenate(self.logits))
            finite(judged.loss, "fastai", "tuning", progress)
            loss, right, rate = self.loss_sum / self.seen, self.right / self.seen, float(self.opt.hypers[-1]["lr"])
            record = record_epoch(progress, judged, self.started, loss=loss, accuracy=right, rate=rate)
            if record.is_kept:
                self.best_weights = state_of(self.learn.model)
            log.info("fastai epoch %d: %s", record.epoch, record.model_dump_json(exclude={"epoch"}))
            on_epoch(record)
            if progress.is_over:
                raise CancelFitException

        def after_fit(self) -> None:
            if self.best_weights is not None:
                self.learn.model.load_state_dict(self.best_weights)

    return Journal()


def accuracy(logits: Any, labels: Any) -> Any:
    """Return the share of cells that are classified correctly at a probability of 0.5."""
    return ((logits.flatten() > 0) == (labels.flatten() > 0.5)).float().mean()


@contextlib.contextmanager
def printing_to_log() -> Iterator[None]:
    """Send what fastai and torch print to the log."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        for line in printed.getvalue().splitlines():
            log.debug(line)
