"""What benchmarks/ablation.py changes: the parts of both CNNs' recipes, each without it or in another way.

What no setting of a recipe says is patched, in a process that does nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import training

__all__ = ["CHANGES", "Change"]

SEED = 1


@dataclass(frozen=True)
class Change:
    """One difference from the recipe: settings of it, or a patch of a process that does nothing else."""

    says: str
    recipe: dict[str, Any] = field(default_factory=dict)
    patch: Callable[[], None] | None = None
    models: Sequence[str] = ("fastai", "keras")
    seed: int = SEED


class _Angles:
    """A generator whose angles are others; all else that it draws is what it would be."""

    def __init__(self, rng: np.random.Generator, turned: Callable[[npt.NDArray[np.float64]], Any]) -> None:
        self.rng, self.turned = rng, turned

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rng, name)

    def uniform(self, low: float, high: float, size: Any) -> Any:
        drawn = self.rng.uniform(low, high, size)
        return self.turned(drawn) if high == 2 * np.pi else drawn


class _Upright(_Angles):
    def choice(self, values: Sequence[float], size: Any) -> Any:
        return np.abs(self.rng.choice(values, size))


def _put(module: Any, **named: Any) -> None:
    for name, value in named.items():
        setattr(module, name, value)


def _vary(wrap: Callable[[np.random.Generator], Any], after: Callable[[Any, Any], Any] | None = None) -> None:
    """Have both CNNs' cells varied with another generator, and changed once more."""
    from tasks.models import preparation as _common
    from tasks.models import variation
    from tasks.models.fastai import batches as fastai_batches
    from tasks.models.keras import batches as keras_batches

    own = variation.augment

    def augment(images: Any, how: Any, rng: np.random.Generator) -> Any:
        varied = own(images, how, wrap(rng))
        return after(varied, rng) if after else varied

    for module in (_common, fastai_batches, keras_batches):
        _put(module, augment=augment)


def _quarter_turns() -> None:
    _vary(lambda rng: _Angles(rng, lambda angles: np.floor(angles / (np.pi / 2)) * (np.pi / 2)))


def _upright() -> None:
    _vary(lambda rng: _Upright(rng, np.zeros_like))


def _cutout() -> None:
    """Black out a square of a quarter of the side (DeVries & Taylor 2017, arXiv:1708.04552)."""

    def cut(images: Any, rng: np.random.Generator) -> Any:
        side = images.shape[1]
        for image, (top, left) in zip(images, rng.integers(0, side - side // 4 + 1, (len(images), 2)), strict=True):
            image[top : top + side // 4, left : left + side // 4] = 0
        return images

    _vary(lambda rng: rng, cut)


def _mixup() -> None:
    """Blend each cell, and its label, with another of its batch, by Beta(0.2, 0.2) (Zhang 2018, arXiv:1710.09412)."""
    from tasks.models.keras import batches as keras_batches

    own = keras_batches.dataset_of
    rng = np.random.default_rng((SEED, 1))

    def dataset(make: Callable[[], Iterator[Any]], *how: Any) -> Any:
        def mixed() -> Iterator[Any]:
            for batch in make():
                if len(batch) == 1:  # to be scored
                    yield batch
                    continue
                images, labels = batch
                share = rng.beta(0.2, 0.2, len(images)).astype(np.float32)
                other, cell = rng.permutation(len(images)), share[:, None, None, None]
                blended = cell * images + (1 - cell) * images[other]
                yield blended.astype(np.uint8), share * labels + (1 - share) * labels[other]

        return own(mixed, *how)

    _put(keras_batches, dataset_of=dataset)


def _centred_otherwise(how: str) -> Callable[[], None]:
    """Return a patch: the colours of a cell as they are, divided by their mean, or centred and of one spread."""

    def centre(cells: Any, inside: Any, axes: tuple[int, int], add: Callable[..., Any]) -> Any:
        pixels = add(inside, axes) + 1
        mean = add(cells * inside, axes) / pixels
        if how == "divided":
            return cells / (mean + 0.05) - 1
        centred = (cells - mean) * inside
        return centred / ((add(centred**2, axes) / pixels) ** 0.5 + 0.02)

    def patch() -> None:
        from tasks.models import preparation as _common
        from tasks.models.fastai import cnn as fastai_xresnet
        from tasks.models.keras import cnn as keras_cnn

        def of_keras(images: Any) -> Any:
            from keras import ops

            cells = ops.cast(images, "float32") / 255
            if how == "as it is":
                return cells * 2 - 1
            inside = ops.cast(ops.max(cells, axis=-1, keepdims=True) > _common.BLACK, "float32")
            return centre(cells, inside, (1, 2), lambda x, axes: ops.sum(x, axis=axes, keepdims=True))

        _put(keras_cnn, _centred=of_keras)
        own = fastai_xresnet.network

        def network(architecture: str) -> Any:
            import torch

            class Cells(torch.nn.Module):  # type: ignore[misc]
                def forward(self, images: Any) -> Any:
                    cells = images.permute(0, 3, 1, 2).float() / 255
                    if how == "as it is":
                        return (cells - 0.5) / 0.3
                    inside = (cells.amax(1, keepdim=True) > _common.BLACK).float()
                    return centre(cells, inside, (2, 3), lambda x, axes: x.sum(axes, keepdim=True))

            return torch.nn.Sequential(Cells(), own(architecture)[1])

        _put(fastai_xresnet, network=network)

    return patch


def _focus() -> None:
    """Sharpen some cells and soften others."""
    import cv2

    def refocus(images: Any, rng: np.random.Generator) -> Any:
        for image, more in zip(images, np.clip(rng.normal(0, 0.5, len(images)), -1, 1), strict=True):
            soft = cv2.GaussianBlur(image, (0, 0), 1.0).astype(np.float32)
            image[:] = np.clip(image + more * (image - soft), 0, 255).astype(np.uint8)
        return images

    _vary(lambda rng: rng, refocus)


def _contrast() -> None:
    """Draw the colours of a cell nearer to its mean, or farther away from it."""

    def contrast(images: Any, rng: np.random.Generator) -> Any:
        inside = images.max(axis=-1, keepdims=True) > 25
        mean = (images * inside).sum((1, 2), keepdims=True) / (inside.sum((1, 2), keepdims=True) + 1)
        gain = np.exp(rng.normal(0, 0.25, (len(images), 1, 1, 1)))
        return np.where(inside, np.clip(mean + gain * (images - mean), 0, 255), images).astype(np.uint8)

    _vary(lambda rng: rng, contrast)


def _half_the_pixels() -> None:
    """Show, and score, cells of 48 pixels."""
    from tasks.models.variation import shrunk

    own = training.divide

    def divide(*given: Any) -> Any:
        return [(shrunk(images, 0.75), labels, patients) for images, labels, patients in own(*given)]

    _put(training, divide=divide)


def _lowest() -> None:
    from tasks.models import selection

    selection.SIGNIFICANT = 0.0


def _sgd() -> None:
    """Nesterov's momentum instead of AdamW, at a rate of its own, nothing decayed."""
    _frameworks()
    import keras

    from tasks.models.keras import callbacks as keras_callbacks
    from tasks.models.keras import cnn as keras_cnn

    own = keras_callbacks.journal

    def journal(recipe: Any, *given: Any) -> Any:
        return own(recipe.model_copy(update={"learning_rate": 0.05}), *given)

    _put(keras_cnn, journal=journal)
    keras.optimizers.AdamW = lambda rate, weight_decay: keras.optimizers.SGD(rate, momentum=0.9, nesterov=True)


def _rates(shape: Callable[[float], float]) -> Callable[[], None]:
    """Return a patch: the share of the rate at a share of all epochs, none of which is left out."""

    def patch() -> None:
        from tasks.models.schedule import Schedule

        def rate(self: Any, at: float, losses: Sequence[float]) -> float:
            return float(self.risen(at) * max(0.01, shape(at / self.epochs)))

        _put(Schedule, rate=rate, length=lambda self, losses: self.epochs)

    return patch


def _cosine(at: float) -> float:
    return float((1 + np.cos(np.pi * at)) / 2)


def _frameworks() -> None:
    from tasks.models.keras import cnn as keras_cnn

    keras_cnn._framework()


# As a table in docs/training.md tells them.
CHANGES: dict[str, Change] = {
    "seed": Change("nothing but another seed", seed=2),
    "seed-3": Change("nothing but a third seed", seed=3),
    "uncentred": Change("colours as they are, not less the cell's mean", patch=_centred_otherwise("as it is")),
    "divided": Change("colours divided by the cell's mean", patch=_centred_otherwise("divided")),
    "standardised": Change("colours less the mean, of one spread", patch=_centred_otherwise("standardised")),
    "quarter-turns": Change("turned by quarters only, mirrored", patch=_quarter_turns),
    "upright": Change("neither turned nor mirrored", patch=_upright),
    "stain": Change("stain not varied", recipe={"stain": 0}),
    "stain-doubled": Change("stain varied twice as much", recipe={"stain": 0.2}),
    "focus": Change("focus varied", patch=_focus),
    "contrast": Change("contrast varied", patch=_contrast),
    "zoom": Change("size and place not varied", recipe={"zoom": 0, "shift": 0}),
    "cutout": Change("a square of 16 px blacked out", patch=_cutout),
    "mixup": Change("mixup, Beta(0.2, 0.2)", patch=_mixup, models=["keras"]),
    "smoothing": Change("labels not smoothed", recipe={"smoothing": 0}),
    "smoothing-doubled": Change("labels smoothed by 0.1", recipe={"smoothing": 0.1}),
    "lowest": Change("the epoch with the lowest loss on tuning patients kept", patch=_lowest),
    "to-the-end": Change("never ended early", recipe={"patience": 1000}, models=["keras"]),
    "impatient": Change("half the patience", recipe={"patience": 3}, models=["keras"]),
    "cosine": Change("14 epochs under one cosine", {"epochs": 14}, _rates(_cosine), ["keras"]),
    "constant": Change("a constant rate, 14 epochs", {"epochs": 14}, _rates(lambda at: 1.0), ["keras"]),
    "rate-doubled": Change("twice the rate", recipe={"learning_rate": 4e-3}, models=["keras"]),
    "rate-halved": Change("half the rate", recipe={"learning_rate": 1e-3}, models=["keras"]),
    "sgd": Change("SGD with momentum", patch=_sgd, models=["keras"]),
    "wide": Change("twice the channels", recipe={"width": 64}, models=["keras"]),
    "narrow": Change("half the channels", recipe={"width": 16}, models=["keras"]),
    "dropout": Change("dropout of 0.3", recipe={"dropout": 0.3}, models=["keras"]),
    "decay": Change("no weight decay", recipe={"weight_decay": 0}),
    "pixels": Change("48 px", patch=_half_the_pixels),
    "large": Change("cells of the full size from the start", recipe={"small_share": 0}, models=["fastai"]),
    "smaller": Change("the first cells half as large", recipe={"small_size": 0.5}, models=["fastai"]),
    "flat": Change("half of the epochs flat", {"warmup": 0.8, "cooldown": 4}, models=["fastai"]),
}
