"""What a GPU does with the cells that lie on it, on this machine's CPU. Loads the framework that it is asked about."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.models import Images, Variation
from tasks.models.variation import draw

SEED, SIZE = 5, 0.75
VARIATIONS = {"moved": Variation(0.1, 1.5, 0), "stained": Variation(0.1, 1.5, 0.1)}


def hold_on_device(name: str, held: bool) -> None:
    """Let the next fits of this process hold their cells as a GPU would, or as a CPU does."""
    asks = {"fastai": "fastai.batches", "keras": "keras.cnn"}[name]
    importlib.import_module(f"tasks.models.{asks}").fits_on_device = lambda *_: held  # type: ignore[attr-defined]


def shown_batches(name: str) -> list[Images]:
    """Return a list that all batches which the next fits of this process make here are added to."""
    room: Any = importlib.import_module(f"tasks.models.{name}.batches")
    own, shown = room.augment, []

    def augment(*given: Any) -> Images:
        varied: Images = own(*given)
        shown.append(varied.copy())
        return varied

    room.augment = augment
    return shown


def iterators_tuned() -> list[bool]:
    """Return a list to which each pass of TensorFlow's over a dataset adds whether it tunes it."""
    from tasks.models.keras import cnn as keras_cnn

    keras_cnn._framework()
    from tensorflow.python.data.ops.iterator_ops import OwnedIterator

    own, tuned = OwnedIterator.__init__, []

    def begin(iterator: Any, dataset: Any = None, *given: Any, **named: Any) -> None:
        if dataset is not None:
            tuned.append(dataset.options().autotune.enabled is not False)
        own(iterator, dataset, *given, **named)

    OwnedIterator.__init__ = begin
    return tuned


def releases(shown: Sequence[object]) -> list[int]:
    """Return a list to which each release of memory adds how many batches were ``shown`` by then: due after three."""
    from tasks.models import memory

    released, own = [], memory.release_memory

    def release() -> None:
        released.append(len(shown))
        own()

    memory.RELEASED, memory.release_memory = 3, release
    return released


def show_on_device(name: str, images: Images) -> dict[str, npt.NDArray[Any]]:
    """Return the cells as each of ``VARIATIONS`` shows them, by its name; with torch also small ones, as "shrunk"."""
    shown = {}
    for called, variation in VARIATIONS.items():
        draws = draw(len(images), images.shape[1], variation, np.random.default_rng(SEED))
        if name == "fastai":
            import torch

            from tasks.models.fastai.batches import shrunk_on_device, varied_on_device

            cells = torch.from_numpy(images)
            shown[called] = varied_on_device(cells, draws).numpy()
            shown["shrunk"] = shrunk_on_device(cells, SIZE).numpy()
        else:
            from tasks.models.keras import batches as keras_batches

            gains = np.ones((1, 1, 1, 3), np.float32) if draws.gains is None else draws.gains
            shown[called] = np.array(keras_batches.varied_on_device(images, draws.returns, gains))
    return shown
