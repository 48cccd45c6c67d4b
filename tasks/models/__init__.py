"""The two CNNs behind one protocol, and the table that finds them by name.

Importing this package loads neither framework. A model module imports its framework inside its functions, so a
process that fits one CNN never loads the other's framework.
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

__all__ = ["CNN", "Deadline", "FitResult", "Recipe", "TrainingData", "Variation", "get_model", "model_names"]

# name -> module; one line makes a CNN known to settings, flows, tests and reports.
_MODULES = {"fastai": "tasks.models.fastai.cnn", "keras": "tasks.models.keras.cnn"}

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.float32]


class Recipe(BaseModel):
    """Hyperparameters that every recipe has. A model module derives its own with its own defaults and reasons."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(gt=0, description="most epochs; early stopping usually ends sooner")
    warm_epochs: int = Field(gt=0, description="the same, of a training that begins with the weights of an earlier one")
    min_steps: int = Field(ge=0, description="a set of few cells gets as many more epochs as it takes to reach them")
    # The rest is new, or a network that knows the old cells learns less from new ones (Ash & Adams 2020,
    # arXiv:1910.08475).
    warm_share: float = Field(default=0.6, ge=0, le=1, description="share of the earlier weights that is kept")
    batch_size: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    warmup: float = Field(ge=0, description="epochs over which the rate rises")
    patience: int = Field(gt=0, description="epochs without a lower validation loss, before the rate falls")
    cooldown: int = Field(gt=0, description="epochs over which the rate falls; with them the fit ends")
    deadline_seconds: float = Field(
        gt=0, description="wall-clock limit of the fit, which ends with the epoch kept so far"
    )
    # Some of the labels are wrong. The only value tried.
    smoothing: float = Field(default=0.05, ge=0, lt=1, description="labels are half of it away from 0 and 1")
    # About a tenth in strength and hue, as between slides.
    stain: float = Field(default=0.1, ge=0, le=1, description="spread of the logarithm of a channel's strength")
    # About a tenth in size, as between cells; and a little out of the middle.
    zoom: float = Field(default=0.1, ge=0, le=1, description="spread of the logarithm of a cell's size")
    shift: float = Field(default=1.5, ge=0, description="pixels by which a cell may move")
    # A smear has no left or right. All four: AUC +0.0013 on unseen patients, eight no more (docs/training.md).
    views: Literal[1, 2, 4] = Field(default=4, description="mirror images whose scores the model file averages")

    @property
    def variation(self) -> Variation:
        """How much cells are varied."""
        return Variation(self.zoom, self.shift, self.stain)


@dataclass(frozen=True)
class Variation:
    """How much a training cell differs from its picture, each time that it is shown.

    ``zoom``: spread of the logarithm of its size; ``shift``: pixels it may move; ``stain``: spread of the logarithm of
    a channel's strength.
    """

    zoom: float
    shift: float
    stain: float


@dataclass(frozen=True)
class TrainingData:
    """What a CNN is fitted on: images uint8 [n, side, side, 3] RGB, labels float32 [n], 1 for Parasitized.

    ``valid_patients``: the patient of each validation cell by number, int [n]; None: each is of another.
    """

    train_images: Images
    train_labels: Labels
    valid_images: Images
    valid_labels: Labels
    valid_patients: npt.NDArray[np.int64] | None = None


@dataclass
class Deadline:
    """A moment on the monotonic clock, asked by the callbacks of both frameworks between batches."""

    seconds: float
    started: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        """Seconds of work so far."""
        return time.monotonic() - self.started

    @property
    def passed(self) -> bool:
        """Whether the time is up."""
        return self.elapsed > self.seconds

    def spend(self, seconds: float) -> None:
        """Count what an earlier process worked on the same fit before it was killed."""
        self.started -= seconds


@dataclass(frozen=True)
class FitResult:
    """What a fit leaves behind: two files, an image of its first batch, and how it went."""

    onnx: Path
    weights: Path
    history: tuple[EpochRecord, ...]
    best_epoch: int
    stopped: Literal["early", "deadline", "finished"]
    device: str
    versions: dict[str, str]
    # By which the model file divides its logits.
    temperature: float
    batch: Path | None = None
    # Of a fit that was killed and went on: the epochs and the seconds before.
    epochs_before: int = 0
    seconds_before: float = 0.0


class CNN(Protocol):
    """What a model module offers: it *is* the protocol's object (a module with these names).

    ``fit`` trains with early stopping on validation loss (``tasks.models.schedule``), restores the weights of the epoch
    that is kept (``tasks.models.selection``), and writes the one model file: ONNX, input ``images`` uint8 [n, side,
    side, 3], output ``probability`` float32 [n]. It calls ``on_epoch`` after every epoch. With ``start``, the weights
    file of an earlier fit of the same recipe, it begins with a share of those weights and takes fewer epochs. A fit
    that was killed goes on after the last epoch that ``folder`` holds a checkpoint of. The same data, recipe and seed
    give the same file on the same machine and versions, and number of devices. Each batch is dealt out over ``devices``
    GPUs, or parts of the CPU where there is none. Where ``PROCESS_PER_DEVICE`` is true, as many processes have been
    launched to call ``fit`` together (``tasks.models.fastai.ranks``); it returns in the first of them.
    ``SHAPE`` names the recipe's settings on which the shapes of the weights depend.
    ``predict_native`` scores with the framework itself, from the weights file, to show that both agree.
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
