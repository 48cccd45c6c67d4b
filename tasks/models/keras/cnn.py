"""A Keras CNN of our own, small enough for a CPU: a stem, three residual blocks, pooled by mean and by maximum.

On patients that it has not seen, from 3,770 real cells, in five CPU minutes: accuracy 0.964, AUC 0.992 (five parts of
120 patients; ``python -m benchmarks.training CELLS --folder WORK``, docs/training.md).
The file and Keras agree to 1.2e-7. No figure is from a GPU: that path has not been run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from tasks.models import Deadline, FitResult, Images, Recipe, TrainingData
from tasks.models.checkpoint import Checkpoints, FitProgress
from tasks.models.keras.batches import FIRST_EPOCH, batches, lie_on_device, scores, shown_on_device
from tasks.models.keras.callbacks import SCORING_BATCH, DeadlinePassed, accuracy, callbacks, go_on
from tasks.models.preparation import (
    BLACK,
    CONTRAST,
    INPUT,
    MIRRORED,
    OUTPUT,
    check_data,
    draw_batch,
    finish_onnx,
    schedule_of,
)
from tasks.models.selection import Selection
from validation.errors import TrainingFailed
from validation.records import EpochRecord
from validation.statistics.calibration import temperature_of

__all__ = ["RECIPE_VERSION", "SHAPE", "DefaultRecipe", "fit", "predict_native"]

RECIPE_VERSION = 6
SHAPE = ("width",)
# TensorFlow trains on all devices of a machine from one process.
PROCESS_PER_DEVICE = False
OPSET = 18

log = logging.getLogger(__name__)


class DefaultRecipe(Recipe):
    """Hyperparameters of the Keras CNN, each with the reason for its number (docs/training.md has the comparisons)."""

    # Trainings on 4,000 cells end after 12 to 24, 18 on average (docs/training.md).
    epochs: int = Field(default=24, gt=0)
    warm_epochs: int = Field(default=8, gt=0)
    # A small set takes few steps an epoch: it gets more epochs, and as much more patience.
    min_steps: int = Field(default=500, ge=0)
    # 145 steps an epoch.
    batch_size: int = Field(default=32, ge=2)
    # The peak, after the warm-up. The only value tried.
    learning_rate: float = Field(default=2e-3, gt=0)
    # Epochs that lead up to it: the first steps from random weights are the wildest.
    warmup: float = Field(default=1.5, ge=0)
    # 300,000 weights need little. The only value tried.
    weight_decay: float = Field(default=0.01, ge=0)
    # Before the only dense layer; with 0.3 unseen patients were called worse (docs/training.md).
    dropout: float = Field(default=0.0, ge=0, lt=1)
    # Channels of the first stage, doubled by each of the next two. 64 take three times as long and see no better.
    width: int = Field(default=32, ge=8)
    # Validation loss swings while the rate is at its peak: with four, one lucky second epoch ended a fit after ten.
    patience: int = Field(default=6, gt=0)
    cooldown: int = Field(default=4, gt=0)
    # Twice what it takes on two quiet cores.
    deadline_seconds: float = Field(default=1200, gt=0)


def fit(
    data: TrainingData,
    recipe: DefaultRecipe,
    *,
    seed: int,
    folder: Path,
    on_epoch: Callable[[EpochRecord], None],
    devices: int = 1,
    start: Path | None = None,
) -> FitResult:
    """Train until the validation patients have nothing more to say, cool down, and export the epoch that is kept.

    Raises:
        TrainingFailed: when the data cannot be learned from, the loss diverges, or not one epoch fits the deadline.
    """
    deadline = Deadline(recipe.deadline_seconds)
    check_data(data, "keras", recipe.batch_size, devices)
    keras = _framework()
    device, together = _seeded_device(seed, devices)
    side = data.train_images.shape[1]
    schedule = schedule_of(recipe, len(data.train_images), warm=start is not None)
    folder.mkdir(parents=True, exist_ok=True)

    keras.config.set_dtype_policy("float32" if device.endswith("cpu") else "mixed_float16")
    with together():
        network = _network(side, recipe, synchronized=devices > 1)
        if start:
            _begin_with(network, start, recipe.warm_share)
        held = lie_on_device(data.train_images, devices)
        trained = shown_on_device(network, data.train_images) if held else network
        trained.compile(
            optimizer=keras.optimizers.AdamW(recipe.learning_rate, weight_decay=recipe.weight_decay),
            loss=keras.losses.BinaryCrossentropy(from_logits=True),
            metrics=[accuracy],
            jit_compile=False,  # batches come in two sizes, and XLA would compile everything for each
        )
    versions = _versions() | ({"devices": str(devices)} if devices > 1 else {})
    progress = FitProgress(schedule, Checkpoints.of(folder, data, recipe, seed, versions), deadline, Selection(data))
    keep, watchers = callbacks(recipe, progress, network, data.valid_images, on_epoch, devices)
    with together():
        _complete(trained, devices)
        go_on(trained, keep, progress)
    if not progress.is_over:
        with contextlib.suppress(DeadlinePassed):
            trained.fit(
                batches(data, recipe, seed, lambda: len(progress.history), devices, held=held),
                initial_epoch=progress.before,
                epochs=schedule.epochs,
                shuffle=False,  # the batches are shuffled by our own seed
                callbacks=watchers,
                verbose=0,
            )
    history, best = progress.history, progress.best
    if best is None:
        raise TrainingFailed(
            f"keras: no epoch ended within {recipe.deadline_seconds:.0f} s on {device}",
            "raise the recipe's deadline_seconds, or train on fewer or smaller cells",
        )
    ended: Literal["early", "finished"] = "early" if len(history) < schedule.epochs else "finished"

    # Whatever precision it was trained in, it is kept and exported in float32, which every machine can score.
    keras.config.set_dtype_policy("float32")
    averaged = _averaged(side, recipe)
    averaged.set_weights(keep.best_weights)
    logits = scores(averaged, data.valid_images, SCORING_BATCH // recipe.views)
    temperature = temperature_of(logits, data.valid_labels > 0.5)
    scorer = _scorer(averaged, temperature)
    weights, onnx = folder / "weights.keras", folder / "model.onnx"
    scorer.save(weights)
    _export(scorer, onnx)
    progress.checkpoints.forget()
    return FitResult(
        onnx=onnx,
        weights=weights,
        history=tuple(history),
        best_epoch=best.epoch,
        stopped="deadline" if ended == "early" and deadline.passed else ended,
        device=device,
        versions=_versions(),
        temperature=temperature,
        batch=draw_batch(data, recipe.batch_size, recipe.variation, seed, folder, epoch=FIRST_EPOCH),
        epochs_before=progress.before,
        seconds_before=progress.seconds_before,
    )


def predict_native(weights: Path, recipe: DefaultRecipe, images: Images) -> npt.NDArray[np.float32]:
    """Return the probability of Parasitized for each cell, float32 [n], computed by Keras from the weights file."""
    if not len(images):
        return np.empty(0, np.float32)
    scorer = _framework().saving.load_model(weights, compile=False, safe_mode=True)
    return scores(scorer, images, SCORING_BATCH // recipe.views)


def _network(side: int, recipe: DefaultRecipe, *, synchronized: bool = False) -> Any:
    """Return uint8 [n, side, side, 3] -> logit [n, 1]; ``synchronized``: normalised by the batches of all devices.

    Two convolutions halve the cell, three residual blocks (He et al. 2016) look at it at a half, a quarter and an
    eighth of its size. Each channel is pooled by its mean and by its maximum: a parasite is a small thing, which a
    mean alone dilutes.
    """
    from keras import Input, Model, layers

    def convolve(x: Any, width: int, size: int, name: str, *, stride: int = 1, relu: bool = True) -> Any:
        x = layers.Conv2D(width, size, strides=stride, padding="same", use_bias=False, name=f"conv{name}")(x)
        x = layers.BatchNormalization(momentum=0.9, synchronized=synchronized, name=f"norm{name}")(x)
        return layers.Activation("relu", name=f"relu{name}")(x) if relu else x

    images = Input((side, side, 3), dtype="uint8", name=INPUT)
    x = convolve(_centred(images), recipe.width * 3 // 8, 3, "0_1", stride=2)
    x = convolve(x, recipe.width // 2, 3, "0_2")
    for block, width in enumerate((recipe.width, 2 * recipe.width, 4 * recipe.width), start=1):
        if block > 1:
            x = layers.MaxPooling2D(name=f"pool{block}")(x)
        y = convolve(x, width, 3, f"{block}_1")
        y = convolve(y, width, 3, f"{block}_2", relu=False)
        x = convolve(x, width, 1, f"{block}_skip", relu=False)
        x = layers.Activation("relu", name=f"relu{block}")(layers.Add(name=f"add{block}")([x, y]))
    mean, most = layers.GlobalAveragePooling2D(name="mean")(x), layers.GlobalMaxPooling2D(name="most")(x)
    x = layers.Concatenate(name="pooled")([mean, most])
    x = layers.Dropout(recipe.dropout, name="dropout")(x)
    logit = layers.Dense(1, dtype="float32", name="logit")(x)
    return Model(images, logit, name="cells")


def _centred(images: Any) -> Any:
    """Return uint8 [n, side, side, 3] -> float32: the colours of each cell less their own mean, its padding 0.

    Stain and light differ from slide to slide by more than a parasite does from the cell that it is in.
    """
    from keras import ops

    cells = ops.cast(images, "float32") / 255
    inside = ops.cast(ops.max(cells, axis=-1, keepdims=True) > BLACK, "float32")
    pixels = ops.maximum(ops.sum(inside, axis=(1, 2), keepdims=True), 1)  # a picture all black has none
    mean = ops.sum(cells * inside, axis=(1, 2), keepdims=True) / pixels
    return (cells - mean) * inside * CONTRAST


def _averaged(side: int, recipe: DefaultRecipe) -> Any:
    """Return uint8 [n, side, side, 3] -> logit [n], the mean over a cell and its mirror images.

    Its weights are the network's, in the network's order.
    """
    from keras import Input, Model, ops

    cells = images = Input((side, side, 3), dtype="uint8", name=INPUT)
    for axis in MIRRORED[recipe.views]:
        # ops.flip would become a dozen nodes in the model file, in another order each time.
        mirrored = images[:, ::-1] if axis == 1 else images[:, :, ::-1]
        images = ops.concatenate([images, mirrored])
    logits = _network(side, recipe)(images)
    return Model(cells, ops.mean(ops.reshape(logits, (recipe.views, -1)), axis=0), name="averaged")


def _complete(network: Any, devices: int) -> None:
    """Make what the first step would make otherwise: its graph would be traced a second time, for 3 s."""
    network.optimizer.build(network.trainable_variables)
    if devices == 1:  # with more, a metric lives on each of them
        network.compute_metrics(None, np.zeros(1, np.float32), np.zeros((1, 1), np.float32))


def _begin_with(network: Any, weights: Path, share: float) -> None:
    """Blend the weights and statistics of an earlier fit into those that chance has drawn."""
    earlier = _framework().saving.load_model(weights, compile=False, safe_mode=True).get_weights()
    drawn = network.get_weights()
    network.set_weights([share * old + (1 - share) * new for old, new in zip(earlier, drawn, strict=True)])


def _scorer(averaged: Any, temperature: float) -> Any:
    """Return uint8 [n, side, side, 3] -> probability [n], calibrated."""
    from keras import Model, layers

    calibrated = layers.Rescaling(1 / temperature, name="temperature")(averaged.output)
    return Model(averaged.input, layers.Activation("sigmoid", name=OUTPUT)(calibrated), name="scorer")


def _export(scorer: Any, path: Path) -> None:
    import onnx

    raw = path.with_name(".exported.onnx")
    scorer(np.zeros((1, *scorer.input_shape[1:]), np.uint8))  # Keras exports only what has been called
    with warnings.catch_warnings(), _stderr_to_log():
        warnings.simplefilter("ignore")
        scorer.export(str(raw), format="onnx", opset_version=OPSET, verbose=False)
    finish_onnx(onnx.load(raw), path)
    raw.unlink()


def _framework() -> Any:
    """Import Keras over TensorFlow, quietly. Both read these variables once, when they are first imported."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with warnings.catch_warnings(), _stderr_to_log():
        warnings.simplefilter("ignore")
        import keras
        import tensorflow as tf  # noqa: F401  (speaks while it is imported: let it do so here)
    for chatty in ("tensorflow", "tf2onnx"):  # their hints about retracing and optimisers are not for a worker's log
        logging.getLogger(chatty).setLevel(logging.ERROR)
    return keras


def _seeded_device(seed: int, devices: int) -> tuple[str, Callable[[], Any]]:
    """Return the device that this machine has, with everything on it seeded, and the scope of a network on it."""
    import keras
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    with contextlib.suppress(RuntimeError):  # an earlier fit in this process has initialised the devices already
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        if devices > 1 and not gpus:
            parts = [tf.config.LogicalDeviceConfiguration()] * devices
            tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], parts)
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    name = "cpu"
    if gpus:
        name = f"cuda: {tf.config.experimental.get_device_details(gpus[0]).get('device_name', gpus[0].name)}"
    if devices == 1:
        return name, contextlib.nullcontext
    found = [device.name for device in tf.config.list_logical_devices("GPU" if gpus else "CPU")]
    if len(found) < devices:
        raise TrainingFailed(f"keras: expected {devices} devices, found {', '.join(found)}")
    return f"{devices} x {name}", tf.distribute.MirroredStrategy(found[:devices]).scope


@contextlib.contextmanager
def _stderr_to_log() -> Iterator[None]:
    """Send what TensorFlow's C++ writes on the process's stderr to the log; no setting of its own keeps it quiet."""
    kept = os.dup(2)
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            said.seek(0)
            for line in said:
                log.debug(line.rstrip())


def _versions() -> dict[str, str]:
    import keras
    import tensorflow as tf

    return {"tensorflow": tf.__version__, "keras": keras.__version__, "onnx_opset": str(OPSET)}
