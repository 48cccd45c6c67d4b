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


class Recipe(BaseModel):
    """Hyperparameters of every recipe. Each model module derives its own, with defaults and their reasons."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(gt=0, description="maximum epochs; early stopping usually ends sooner")
    warm_epochs: int = Field(gt=0, description="the same, for a training that starts from earlier weights")
    min_steps: int = Field(ge=0, description="minimum steps; a small set gets more epochs until it reaches them")
    # The rest is random: a network that has fitted the old cells learns less from new ones (Ash & Adams 2020,
    # arXiv:1910.08475).
    warm_share: float = Field(default=0.6, ge=0, le=1, description="share of the earlier weights in the first ones")
    batch_size: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    warmup: float = Field(ge=0, description="epochs over which the rate rises")
    patience: int = Field(gt=0, description="epochs without a lower validation loss, before the rate falls")
    cooldown: int = Field(gt=0, description="epochs over which the rate falls; with them the fit ends")
    deadline_seconds: float = Field(gt=0, description="wall-clock limit; the fit ends with the epoch kept so far")
    # Some of the labels are wrong. The only value tried.
    smoothing: float = Field(default=0.05, ge=0, lt=1, description="targets are half of it away from 0 and 1")
    # About a tenth in strength and hue, as between slides.
    stain: float = Field(default=0.1, ge=0, le=1, description="spread of the logarithm of a channel's strength")
    # About a tenth in size, as between cells; and slightly off centre.
    zoom: float = Field(default=0.1, ge=0, le=1, description="spread of the logarithm of a cell's size")
    shift: float = Field(default=1.5, ge=0, description="pixels by which a cell may move")
    # A smear has no left or right. Four: AUC +0.0013 on unseen patients, eight no more (docs/training.md).
    views: Literal[1, 2, 4] = Field(default=4, description="mirror images whose scores the model file averages")

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

    ``valid_patients``: the number of each validation cell's patient, int [n]; None: one patient per cell.
    """

    train_images: Images
    train_labels: Labels
    valid_images: Images
    valid_labels: Labels
    valid_patients: npt.NDArray[np.int64] | None = None


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

    def spend(self, seconds: float) -> None:
        """Add the seconds that a killed process spent on the same fit."""
        self.started -= seconds


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
    # Of a fit that was killed and resumed: the epochs and the seconds before.
    epochs_before: int = 0
    seconds_before: float = 0.0


class CNN(Protocol):
    """The interface of a model module: the module itself is the object.

    ``fit`` trains with early stopping on validation loss (``tasks.models.schedule``), restores the weights of the kept
    epoch (``tasks.models.selection``), and writes the model file: ONNX, input ``images`` uint8 [n, side, side, 3],
    output ``probability`` float32 [n]. It calls ``on_epoch`` after every epoch. With ``start``, the weights file of an
    earlier fit of the same recipe, it starts from a share of those weights and takes fewer epochs. A killed fit resumes
    after the last checkpoint in ``folder``. The same data, recipe, seed, machine, versions and number of devices give
    the same file. Each batch is divided over ``devices`` GPUs, or parts of the CPU without GPUs. If
    ``PROCESS_PER_DEVICE``, as many launched processes call ``fit`` together (``tasks.models.fastai.ranks``); it returns
    in the first of them. ``SHAPE`` names the recipe's settings that determine the shapes of the weights.
    ``predict_native`` scores with the framework, from the weights file, to verify that both agree.
    """

    RECIPE_VERSION: int
    SHAPE: tuple[str, ...]
    PROCESS_PER_DEVICE: bool
    DefaultRecipe: type[Recipe]

    def fit(
        self,
        data: TrainingData,
        recipe: Any,
        *,
        seed: int,
        folder: Path,
        on_epoch: Callable[[EpochRecord], None],
        devices: int = 1,
        start: Path | None = None,
    ) -> FitResult: ...

    def predict_native(self, weights: Path, recipe: Any, images: Images) -> npt.NDArray[np.float32]: ...


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
