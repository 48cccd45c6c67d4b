"""The batches that Keras is shown; on a GPU the cells lie on it, and are varied there.

Imported, like Keras itself, only by the process that trains with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.models import Images, Recipe, TrainingData
from tasks.models.preparation import batch_count, shuffled_batches, smoothed
from tasks.models.variation import augment, draw

__all__ = ["FIRST_EPOCH", "batches", "dataset_of", "lie_on_device", "scores", "shown_on_device", "varied_on_device"]

# By which the first epoch draws its chance.
FIRST_EPOCH = 1
# Batches that are ready while one is used.
AHEAD = 2
# Bytes, of 330,000 cells of 64 pixels. TensorFlow does not tell how much memory a GPU has left.
HELD_AT_MOST = 4 * 2**30

log = logging.getLogger(__name__)


def lie_on_device(images: Images, devices: int) -> bool:
    """Return whether the cells are to be held by the device: by one GPU, and no more of it than any has to spare.

    Several would each need a copy; they are dealt out batches that were made here.
    """
    import tensorflow as tf

    return devices == 1 and images.nbytes <= HELD_AT_MOST and bool(tf.config.list_physical_devices("GPU"))


def batches(data: TrainingData, recipe: Recipe, seed: int, done: Callable[[], int], devices: int, *, held: bool) -> Any:
    """Return the training cells as whole batches, varied, each decided by seed, epoch and number alone.

    Every device must get as many: a batch that cannot be dealt out evenly shows a cell or two a second time. ``done``
    is asked as an epoch begins how many are over. With ``held``, a batch says which cells it shows and how they are
    varied (``shown_on_device``) instead.
    """
    from tensorflow import TensorSpec

    images, labels = data.train_images, smoothed(data.train_labels.astype(np.float32), recipe.smoothing)
    side = images.shape[1]

    def epoch() -> Iterator[Any]:
        number = FIRST_EPOCH + done()
        # Dealt once for the epoch: anew for each of its batches, the work would grow with the square of the cells.
        for batch, chosen in enumerate(shuffled_batches(len(images), recipe.batch_size, seed, number)):
            yield make(np.resize(chosen, -(-len(chosen) // devices) * devices), (seed, number, batch))

    def make(chosen: npt.NDArray[np.int64], chance: tuple[int, int, int]) -> Any:
        rng = np.random.default_rng(chance)
        if not held:
            return augment(images[chosen], recipe.variation, rng), labels[chosen]
        draws = draw(len(chosen), side, recipe.variation, rng)
        gains = np.ones((len(chosen), 1, 1, 3), np.float32) if draws.gains is None else draws.gains
        return (chosen.astype(np.int32), draws.returns, gains), labels[chosen]

    drawn = TensorSpec((None, 2, 3), "float32"), TensorSpec((None, 1, 1, 3), "float32")
    shown = (TensorSpec((None,), "int32"), *drawn) if held else TensorSpec((None, *images.shape[1:]), "uint8")
    return dataset_of(epoch, (shown, TensorSpec((None,), "float32")), batch_count(len(images), recipe.batch_size))


def scores(network: Any, images: Images, batch_size: int, *watchers: Any) -> npt.NDArray[np.float32]:
    """Return what ``network`` says of each of ``images``, float32, one row each; ``watchers`` are Keras callbacks."""
    from tensorflow import TensorSpec

    starts = range(0, len(images), batch_size)

    def all_of_them() -> Iterator[tuple[Images]]:
        for start in starts:
            yield (images[start : start + batch_size],)

    dataset = dataset_of(all_of_them, (TensorSpec((None, *images.shape[1:]), "uint8"),), len(starts))
    found: npt.NDArray[np.float32] = network.predict(dataset, verbose=0, callbacks=list(watchers))
    return found


def dataset_of(make: Callable[[], Iterator[Any]], signature: Any, count: int) -> Any:
    """Return the ``count`` batches that ``make`` yields, each made while the ones before it are used.

    Of Keras's own ways to it, all but the one with several threads let TensorFlow tune the dataset. The thread that
    does so wakes up after longer and longer pauses, and the end of each pass waits for it: up to as long as the pass.
    """
    import tensorflow as tf

    dataset = tf.data.Dataset.from_generator(make, output_signature=signature)
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.apply(tf.data.experimental.assert_cardinality(count)).prefetch(AHEAD).with_options(options)


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
