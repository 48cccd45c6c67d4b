"""The batches that Keras is shown: on a GPU the cells lie on it, and are varied there.

Imported, like Keras itself, only by the process that trains with it.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt

from . import Images, Recipe, TrainingData
from ._common import batch_count, shuffled_batches, smoothed
from .variation import augment, draw

__all__ = ["FIRST_EPOCH", "batches", "lie_on_device", "shown_on_device", "varied_on_device"]

# By which the first epoch draws its chance: Keras says that one has ended before it begins the first.
FIRST_EPOCH = 1
# Bytes, of 330,000 cells of 64 pixels. TensorFlow does not tell how much memory a GPU has left.
HELD_AT_MOST = 4 * 2**30

log = logging.getLogger(__name__)


def lie_on_device(images: Images, devices: int) -> bool:
    """Return whether the cells are to be held by the device: by one GPU, and no more of it than any has to spare.

    Several would each need a copy; they are dealt out batches that were made here.
    """
    import tensorflow as tf

    return devices == 1 and images.nbytes <= HELD_AT_MOST and bool(tf.config.list_physical_devices("GPU"))


def batches(data: TrainingData, recipe: Recipe, seed: int, before: int, devices: int, *, held: bool) -> Any:
    """Return the training cells as whole batches, varied, each decided by seed, epoch and number alone.

    Every device must get as many: a batch that cannot be dealt out evenly shows a cell or two a second time.
    With ``held``, a batch says which cells it shows and how they are varied (``shown_on_device``) instead.
    """
    from keras.utils import PyDataset

    images, labels = data.train_images, smoothed(data.train_labels.astype(np.float32), recipe.smoothing)
    side = images.shape[1]

    class Batches(PyDataset):  # type: ignore[misc]
        epoch = before
        # Kept for the epoch: made anew for each of its batches, the work would grow with the square of the cells.
        order = shuffled_batches(len(images), recipe.batch_size, seed, before)

        def __len__(self) -> int:
            return batch_count(len(images), recipe.batch_size)

        def __getitem__(self, number: int) -> tuple[Any, npt.NDArray[np.float32]]:
            chosen = self.order[number]
            chosen = np.resize(chosen, -(-len(chosen) // devices) * devices)
            rng = np.random.default_rng((seed, self.epoch, number))
            if not held:
                return augment(images[chosen], recipe.variation, rng), labels[chosen]
            draws = draw(len(chosen), side, recipe.variation, rng)
            gains = np.ones((len(chosen), 1, 1, 3), np.float32) if draws.gains is None else draws.gains
            return (chosen.astype(np.int32), draws.returns, gains), labels[chosen]

        def on_epoch_end(self) -> None:
            self.epoch += 1
            self.order = shuffled_batches(len(images), recipe.batch_size, seed, self.epoch)

    return Batches()


def shown_on_device(network: Any, images: Images) -> Any:
    """Return ``network`` with another input: which of ``images`` a batch shows and how they are varied.

    Numbers int32 [n], where each pixel comes from float32 [n, 2, 3], gains float32 [n, 1, 1, 3] -> logit [n, 1]. The
    weights are the network's own. The images are copied to the device once.
    """
    import tensorflow as tf
    from keras import Input, Model, layers

    cells = tf.constant(np.asarray(images))
    log.info("%d cells lie on the device, %d MB", len(images), images.nbytes // 1_000_000)

    class Shown(layers.Layer):  # type: ignore[misc]
        def call(self, numbers: Any, returns: Any, gains: Any) -> Any:
            return varied_on_device(tf.gather(cells, numbers), returns, gains)

        def compute_output_spec(self, numbers: Any, *_: Any) -> Any:
            from keras import KerasTensor

            return KerasTensor((None, *images.shape[1:]), dtype="uint8")

    given = [
        Input((), dtype="int32", name="numbers"),
        Input((2, 3), dtype="float32", name="returns"),
        Input((1, 1, 3), dtype="float32", name="gains"),
    ]
    # Half precision, which the network may be in, cannot tell one pixel from the next.
    return Model(given, network(Shown(dtype="float32", autocast=False, name="shown")(*given)), name="on_device")


def varied_on_device(cells: Any, returns: Any, gains: Any) -> Any:
    """Return uint8 [n, side, side, 3], varied as ``augment`` would do it but for a rounding: TensorFlow, there."""
    import tensorflow as tf

    # The last two numbers of a kernel's eight would be a perspective.
    transforms = tf.pad(tf.reshape(returns, (-1, 6)), [[0, 0], [0, 2]])
    shown = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(cells, tf.float32),
        transforms=transforms,
        output_shape=tf.shape(cells)[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
    return tf.cast(tf.clip_by_value(tf.round(shown) * gains, 0, 255), tf.uint8)
