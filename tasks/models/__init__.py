"""The two CNNs behind one protocol, and their registry by name.

Importing this package loads neither framework: a model module imports its own inside its functions, so a process that
fits one CNN never loads the other's.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from validation.errors import SettingsError
from validation.records import EpochRecord

# name -> module; a new line makes a CNN known to settings, flows, tests and reports.
_MODULES = {"fastai": "tasks.models.fastai.cnn", "keras": "tasks.models.keras.cnn"}

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.float32]


class Cells(Protocol):
    """Images uint8 [n, side, side, 3] in memory or on disk; only what is indexed needs memory."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def ndim(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Images:
        """Return the images of a slice or of an int array [m], uint8 [m, side, side, 3]."""


class Recipe(BaseModel):
    """Hyperparameters of every recipe. Each model module derives its own, with defaults and their reasons."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(gt=0, description="maximum epochs; early stopping usually ends sooner")
    min_steps: int = Field(ge=0, description="minimum steps; a small set gets more epochs until it reaches them")
    batch_size: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    warmup: float = Field(ge=0, description="epochs over which the rate rises")
    patience: int = Field(gt=0, description="epochs without a lower loss on tuning patients, before the rate falls")
    cooldown: int = Field(gt=0, description="epochs over which the rate falls; with them the fit ends")
    deadline_seconds: float = Field(gt=0, description="wall-clock limit; the fit ends with the epoch kept so far")
    # Some of the labels are wrong. The only value tried.
    smoothing: float = Field(default=0.05, ge=0, lt=1, description="targets are half of it away from 0 and 1")
    # About a tenth in strength and hue, as between slides.
    stain: float = Field(default=0.1, ge=0, le=1, description="spread of the logarithm of a channel's strength")
    # About a tenth in size, as between cells; and slightly off centre.
    zoom: float = Field(default=0.1, ge=0, le=1, description="spread of the logarithm of a cell's size")
    shift: float = Field(default=1.5, ge=0, description="pixels by which a cell may move")
    # A smear has no left or right. For one network four views gain AUC 0.0013 on unseen patients; the mean of five
    # members gains as much, at the same cost (docs/training.md).
    views: Literal[1, 2, 4] = Field(default=1, description="mirror images whose scores the model file averages")

    @property
    def variation(self) -> Variation:
        """How much cells are augmented."""
        return Variation(self.zoom, self.shift, self.stain)


@dataclass(frozen=True)
class Variation:
    """How much a training cell is augmented each time.

    ``zoom``: spread of the logarithm of its size; ``shift``: pixels it may move; ``stain``: spread of the logarithm of
    a channel's strength.
    """

    zoom: float
    shift: float
    stain: float


@dataclass(frozen=True)
class TrainingData:
    """The data of a fit: images uint8 [n, side, side, 3] RGB, labels float32 [n], 1 for Parasitized.

    Images are arrays, or anything like ``Cells`` that reads a batch at a time. ``tuning_patients``: the number of each
    tuning cell's patient, int [n]; None: one patient per cell.
    """

    train_images: Cells
    train_labels: Labels
    tuning_images: Cells
    tuning_labels: Labels
    tuning_patients: npt.NDArray[np.int64] | None = None


@dataclass
class Deadline:
    """A time limit on the monotonic clock, checked by the callbacks of both frameworks between batches."""

    seconds: float
    started: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        """Seconds of work so far."""
        return time.monotonic() - self.started

    @property
    def passed(self) -> bool:
        """Whether the time limit is exceeded."""
        return self.elapsed > self.seconds


@dataclass(frozen=True)
class Device:
    """What a framework trains on in this process, by its own word: ``cpu``, or ``cuda: `` and the GPU's name."""

    name: str
    why_no_gpu: str = ""


@dataclass(frozen=True)
class FitResult:
    """The result of a fit: two files, an image of its first batch, and how it went."""

    onnx: Path
    weights: Path
    history: tuple[EpochRecord, ...]
    best_epoch: int
    stopped: Literal["early", "deadline", "finished"]
    device: str
    versions: dict[str, str]
    temperature: float  # the model file divides its logits by it
    batch: Path | None = None


class CNN(Protocol):
    """The interface of a model module: the module itself is the object.

    ``fit`` trains with early stopping on the loss on tuning patients (``tasks.models.schedule``), restores the weights
    of the kept epoch (``tasks.models.selection``), and writes a member's file: ONNX, input ``images`` uint8
    [n, side, side, 3], output ``logit`` float32 [n], calibrated. It calls ``on_epoch`` after every epoch. The same
    data, recipe, seed, machine and versions give the same file. ``predict_native`` returns the probabilities that the
    framework computes from the weights file, to verify that both agree. ``device`` loads the framework and asks it what
    ``fit`` would train on here.
    """

    RECIPE_VERSION: int
    DefaultRecipe: type[Recipe]

    def fit(
        self,
        data: TrainingData,
        recipe: Any,
        *,
        seed: int,
        folder: Path,
        on_epoch: Callable[[EpochRecord], None],
    ) -> FitResult: ...

    def predict_native(self, weights: Path, recipe: Any, images: Images) -> npt.NDArray[np.float32]: ...

    def device(self) -> Device: ...


def model_names() -> tuple[str, ...]:
    """Return the names of all known CNNs, in the order in which they are trained."""
    return tuple(_MODULES)


def get_model(name: str) -> CNN:
    """Return the model module called ``name``.

    Raises:
        SettingsError: when no CNN has that name.
    """
    if name not in _MODULES:
        raise SettingsError(
            f"unknown model {name!r}", f"known models: {', '.join(_MODULES)} (setting RETRAIN_TRAINING__MODELS)"
        )
    return cast(CNN, importlib.import_module(_MODULES[name]))
