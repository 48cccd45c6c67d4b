"""Callbacks for fastai's Learner: learning rate, early stopping, the kept weights, checkpoints and their restoring.

Without pickle; imported only by the process that trains with fastai.
"""

from __future__ import annotations

import contextlib
import io
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.models import Recipe
from tasks.models.checkpoint import FitProgress
from tasks.models.fastai.ranks import Ranks, parallel
from tasks.models.preparation import finite, record_epoch
from validation.records import EpochRecord

log = logging.getLogger(__name__)

# At the peak rate and at rate 0, as in fastai's one-cycle.
MOMENTA = 0.85, 0.95


def weights_of(progress: FitProgress) -> Path:
    """Return the file of the best weights so far."""
    return progress.checkpoints.folder / "weights.safetensors"


def state_of(model: Any) -> dict[str, Any]:
    """Return the weights and statistics in the form that safetensors takes."""
    return {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}


def fit_from_checkpoint(learn: Any, progress: FitProgress, ranks: Ranks) -> None:
    """Fit from the last checkpoint until the schedule is over."""
    learn.create_opt()
    _restore(learn, progress, ranks)
    if not progress.is_over:
        learn.fit(progress.schedule.epochs - progress.before)
    elif ranks.first:
        _load(learn.model, weights_of(progress))


def callbacks(
    recipe: Recipe, progress: FitProgress, on_epoch: Callable[[EpochRecord], None], ranks: Ranks, valid_cells: int
) -> list[Any]:
    """Return the callbacks that set the rate, record each epoch, save weights and checkpoints, and end the fit."""
    from fastai.callback.core import Callback, CancelFitException
    from fastai.learner import Recorder
    from safetensors.torch import save_file

    class Journal(Callback):  # type: ignore[misc]
        """Sets the rate, checks deadline and loss between batches; judges and records each epoch."""

        order = Recorder.order + 1

        def before_epoch(self) -> None:
            self.started, self.loss_sum, self.seen, self.right = time.monotonic(), 0.0, 0.0, 0.0
            self.logits: list[npt.NDArray[np.float32]] = []

        def before_batch(self) -> None:
            if self.training:
                share = progress.rate(self.iter, self.n_iter)
                # Low momentum at a high rate (Smith 2018, arXiv:1803.09820).
                low, high = MOMENTA
                self.learn.opt.set_hypers(lr=recipe.learning_rate * share, mom=high - (high - low) * share)

        def after_batch(self) -> None:
            late = float(progress.deadline.passed)
            pred = self.learn.pred.detach()
            if self.training:
                cells = len(self.learn.y)
                loss = float(self.learn.loss.detach()) * cells
                right = float(accuracy(pred, self.learn.y)) * cells
                # All ranks act on the same sums.
                loss, right, seen, late = ranks.total([loss, right, cells, late])
                self.loss_sum += finite(loss, "fastai", "training", progress)
                self.right += right
                self.seen += seen
            else:
                self.logits.append(pred.flatten().float().cpu().numpy())
                if ranks.count > 1:
                    return  # ranks may differ by a validation batch; the next training batch checks the deadline
            if late:
                raise CancelFitException

        def after_epoch(self) -> None:
            judged = progress.selection.judge(ranks.whole(np.concatenate(self.logits), valid_cells))
            finite(judged.loss, "fastai", "validation", progress)
            loss, right, rate = self.loss_sum / self.seen, self.right / self.seen, float(self.opt.hypers[-1]["lr"])
            record = record_epoch(progress, judged, self.started, loss=loss, accuracy=right, rate=rate)
            if ranks.first:
                if record.is_kept:
                    save_file(state_of(self.learn.model), weights_of(progress))
                log.info("fastai epoch %d: %s", record.epoch, record.model_dump_json(exclude={"epoch"}))
                if progress.checkpoints.due:
                    _save_checkpoint(self.learn, progress)
                on_epoch(record)
            if progress.is_over:
                raise CancelFitException

        def after_fit(self) -> None:
            if ranks.first and weights_of(progress).exists():
                _load(self.learn.model, weights_of(progress))

    return [*([parallel(ranks)] if ranks.count > 1 else []), Journal()]


def _save_checkpoint(learn: Any, progress: FitProgress) -> None:
    """Save the weights, the best ones if they differ, and the optimiser's moments."""
    from safetensors.numpy import load_file

    arrays = {f"model/{key}": tensor.detach().cpu().numpy() for key, tensor in learn.model.state_dict().items()}
    for number, moments in learn.opt.opt.state_dict()["state"].items():
        arrays.update({f"optimiser/{number}/{key}": value.detach().cpu().numpy() for key, value in moments.items()})
    if progress.best and progress.best.epoch != len(progress.history):
        arrays.update({f"best/{key}": value for key, value in load_file(weights_of(progress)).items()})
    progress.save(arrays)


def _restore(learn: Any, progress: FitProgress, ranks: Ranks) -> None:
    """Restore model, optimiser and history from the last checkpoint of this training, if any."""
    import torch
    from safetensors.numpy import save_file

    saved = progress.checkpoints.find()
    ranks.wait()  # all have read it before the first writes anything
    if saved is None:
        if ranks.first:
            weights_of(progress).unlink(missing_ok=True)
        return
    model = saved.part("model")
    learn.model.load_state_dict({key: torch.from_numpy(array) for key, array in model.items()})
    state = learn.opt.opt.state_dict()
    moments: dict[int, dict[str, Any]] = {}
    for name, array in saved.part("optimiser").items():
        number, _, key = name.partition("/")
        moments.setdefault(int(number), {})[key] = torch.from_numpy(array)
    learn.opt.opt.load_state_dict({**state, "state": moments})
    progress.go_on(saved)
    learn.dls.train.epoch = progress.before
    if ranks.first:
        save_file(saved.part("best") or model, weights_of(progress))
        log.info("fastai resumes after epoch %d", progress.before)


def _load(model: Any, weights: Path) -> None:
    from safetensors.torch import load_file

    model.load_state_dict(load_file(weights))


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
