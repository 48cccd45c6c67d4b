"""The last whole epoch of a fit, on disk, so that a training that was killed goes on where it was.

One safetensors file, written whole or not at all: weights, optimiser and the epochs so far. It is read only by the
same recipe, seed, cells and library versions; to any other training, and when damaged, it is as if it were not there.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.local.files import write_atomic
from tasks.models import Deadline, Recipe, TrainingData
from tasks.models.schedule import Schedule
from tasks.models.selection import Selection
from validation.digest import digest
from validation.errors import RetrainError
from validation.records import EpochRecord

__all__ = ["Checkpoints", "FitProgress", "Saved"]

log = logging.getLogger(__name__)

NAME = "checkpoint.safetensors"
# A large model takes a second to write: where an epoch takes less than this, not every one is worth it.
SECONDS_BETWEEN = 15.0

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Saved:
    """A fit as it stood after its last saved epoch."""

    arrays: dict[str, npt.NDArray[Any]]
    history: tuple[EpochRecord, ...]
    seconds: float

    def part(self, name: str) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays that were saved as ``name/...``, by what follows."""
        return {key.removeprefix(f"{name}/"): array for key, array in self.arrays.items() if key.startswith(f"{name}/")}


@dataclass
class Checkpoints:
    """Writes and finds the checkpoint of one training in its folder."""

    folder: Path
    training: str
    _written: float = field(default_factory=time.monotonic)

    @classmethod
    def of(
        cls, folder: Path, data: TrainingData, recipe: Recipe, seed: int, versions: Mapping[str, str]
    ) -> Checkpoints:
        """Name the training by all that decides how it goes; the folder holds those of one split only."""
        cells = [list(array.shape) for array in (data.train_images, data.valid_images)]
        return cls(folder, digest(recipe.model_dump(mode="json"), seed, cells, dict(versions)))

    def save(self, arrays: Arrays, history: Sequence[EpochRecord], seconds: float) -> None:
        """Keep the state after the last epoch of ``history``, ``seconds`` into the fit; a full disk costs only this."""
        from safetensors.numpy import save

        about = {"epochs": [record.model_dump() for record in history], "seconds": seconds}
        metadata = {"training": self.training, "about": json.dumps(about)}
        data = save({name: np.asarray(array, order="C") for name, array in arrays.items()}, metadata)
        try:
            write_atomic(self.folder / NAME, data)
        except RetrainError as error:
            log.warning("no checkpoint after epoch %d: %s", len(history), error)
        self._written = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the last one was long enough ago."""
        return time.monotonic() - self._written >= SECONDS_BETWEEN

    def find(self) -> Saved | None:
        """Return what this very training left when it was killed."""
        from safetensors import SafetensorError, safe_open

        path = self.folder / NAME
        try:
            with safe_open(path, "numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("training") != self.training:
                    return None
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dictionary)
            about = json.loads(metadata["about"])
            history = tuple(EpochRecord.model_validate(record) for record in about["epochs"])
            saved = Saved(arrays, history, float(about["seconds"]))
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            log.warning("the checkpoint %s cannot be read, the training begins anew: %s", path, error)
            return None
        return saved if saved.history else None

    def forget(self) -> None:
        """Remove the checkpoint of a training that has ended."""
        (self.folder / NAME).unlink(missing_ok=True)


@dataclass
class FitProgress:
    """How far a fit is: its epochs so far, also those before it was killed."""

    schedule: Schedule
    checkpoints: Checkpoints
    deadline: Deadline
    selection: Selection
    history: list[EpochRecord] = field(default_factory=list)
    # Epochs that an earlier process ended, and its seconds.
    before: int = 0
    seconds_before: float = 0.0

    @property
    def best(self) -> EpochRecord | None:
        """The epoch whose weights are kept (tasks.models.selection)."""
        return next((record for record in reversed(self.history) if record.is_kept), None)

    @property
    def kept(self) -> int:
        """Its number; 0 before the first has ended."""
        return self.best.epoch if self.best else 0

    @property
    def waited(self) -> int:
        """Epochs since."""
        return len(self.history) - self.kept

    def save(self, arrays: Arrays) -> None:
        """Keep the state after the last epoch; ``arrays`` are what the framework needs to go on."""
        self.checkpoints.save({**arrays, "lowest": self.selection.lowest}, self.history, self.deadline.elapsed)

    def go_on(self, saved: Saved) -> None:
        """Begin where a killed process left."""
        self.selection.lowest = saved.arrays["lowest"]
        self.history.extend(saved.history)
        self.before, self.seconds_before = len(saved.history), saved.seconds
        self.deadline.spend(saved.seconds)

    @property
    def losses(self) -> list[float]:
        """The loss on the validation patients after each epoch, nats."""
        return [record.valid_loss for record in self.history]

    @property
    def is_over(self) -> bool:
        """Whether no epoch is left to do."""
        return self.schedule.is_over(self.losses)

    def rate(self, step: int, steps: int) -> float:
        """Return the share of the peak rate for step ``step`` of the ``steps`` of the epoch that has begun."""
        return self.schedule.rate(len(self.history) + step / steps, self.losses)
