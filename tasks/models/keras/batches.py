"""The batches for Keras; on a GPU the cells are stored and augmented there.

Imported, like Keras, only by the process that trains with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.models import Cells, Recipe, TrainingData
from tasks.models.preparation import batch_count, shuffled_batches, smoothed
from tasks.models.variation import augment, draw

# The number of the first epoch, which seeds its batches.
FIRST_EPOCH = 1
# Batches that are prepared while one is used.
AHEAD = 2
# Bytes, of 330,000 cells of 64 pixels. TensorFlow does not report a GPU's free memory.
MOST_ON_DEVICE = 4 * 2**30

log = logging.getLogger(__name__)


def fits_on_device(images: Cells) -> bool:
    """Return whether to store the cells on the device: a GPU, within what any GPU can spare."""
    import tensorflow as tf

    return images.nbytes <= MOST_ON_DEVICE and bool(tf.config.list_physical_devices("GPU"))


def batches(data: TrainingData, recipe: Recipe, seed: int, done: Callable[[], int], *, on_device: bool) -> Any:
    """Return the training cells as whole, augmented batches, each determined by seed, epoch and number alone.

    ``done`` returns the number of completed epochs. With ``on_device``, a batch contains the numbers of its cells and
    their augmentation instead (``shown_on_device``).
    """
    from tensorflow import TensorSpec

    images, labels = data.train_images, smoothed(data.train_labels.astype(np.float32), recipe.smoothing)
    side = images.shape[1]

    def epoch() -> Iterator[Any]:
        number = FIRST_EPOCH + done()
        # Shuffled once per epoch: once per batch, the work would grow with the square of the cells.
        for batch, chosen in enumerate(shuffled_batches(len(images), recipe.batch_size, seed, number)):
            yield make(chosen, (seed, number, batch))

    def make(chosen: npt.NDArray[np.int64], chance: tuple[int, int, int]) -> Any:
        rng = np.random.default_rng(chance)
        if not on_device:
            return augment(images[chosen], recipe.variation, rng), labels[chosen]
        draws = draw(len(chosen), side, recipe.variation, rng)
        gains = np.ones((len(chosen), 1, 1, 3), np.float32) if draws.gains is None else draws.gains
        return (chosen.astype(np.int32), draws.returns, gains), labels[chosen]

    drawn = TensorSpec((None, 2, 3), "float32"), TensorSpec((None, 1, 1, 3), "float32")
    shown = (TensorSpec((None,), "int32"), *drawn) if on_device else TensorSpec((None, *images.shape[1:]), "uint8")
    return dataset_of(epoch, (shown, TensorSpec((None,), "float32")), batch_count(len(images), recipe.batch_size))


def scores(network: Any, images: Cells, batch_size: int, *watchers: Any) -> npt.NDArray[np.float32]:
    """Return the outputs of ``network`` for ``images``, float32, one row each; ``watchers`` are Keras callbacks."""
    from tensorflow import TensorSpec

    starts = range(0, len(images), batch_size)
    dataset = dataset_of(
        lambda: ((images[start : start + batch_size],) for start in starts),
        (TensorSpec((None, *images.shape[1:]), "uint8"),),
        len(starts),
    )
    outputs: npt.NDArray[np.float32] = network.predict(dataset, verbose=0, callbacks=list(watchers))
    return outputs


def dataset_of(make: Callable[[], Iterator[Any]], signature: Any, count: int) -> Any:
    """Return the ``count`` batches that ``make`` yields, each prepared while the ones before it are used.

    All of Keras's own adapters but the multi-threaded one let TensorFlow autotune the dataset. Its tuning thread sleeps
    for longer and longer, and the end of each pass waits for it: up to as long as the pass itself.
    """
    import tensorflow as tf

    dataset = tf.data.Dataset.from_generator(make, output_signature=signature)
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.apply(tf.data.experimental.assert_cardinality(count)).prefetch(AHEAD).with_options(options)


def shown_on_device(network: Any, images: Cells) -> Any:
    """Return ``network`` with another input: the numbers of a batch's ``images`` and their augmentation.

    Numbers int32 [n], where each pixel comes from float32 [n, 2, 3], gains float32 [n, 1, 1, 3] -> logit [n, 1]. It
    shares the network's weights. The images are copied to the device once.
    """
    import tensorflow as tf
    from keras import Input, Model, layers

    cells = tf.constant(images[:])
    log.info("%d cells are stored on the device, %d MB", len(images), images.nbytes // 1_000_000)

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
    # The network may use half precision, which cannot distinguish neighbouring pixels.
    return Model(given, network(Shown(dtype="float32", autocast=False, name="shown")(*given)), name="on_device")


def varied_on_device(cells: Any, returns: Any, gains: Any) -> Any:
    """Return uint8 [n, side, side, 3], augmented by TensorFlow on their device; equal to ``augment`` up to rounding."""
    import tensorflow as tf

    # A kernel takes eight numbers; the last two are a perspective.
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
