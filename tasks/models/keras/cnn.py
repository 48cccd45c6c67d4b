"""The project's own Keras CNN, small enough for a CPU: a stem, three residual blocks, pooled by mean and by maximum.

On unseen patients, from 3,770 real cells, in five CPU minutes: accuracy 0.964, AUC 0.992 (five parts of 120 patients;
``python -m benchmarks.training CELLS --folder WORK``, docs/training.md).
Probabilities of the file and of Keras agree to 3e-4 (half precision). No figure is from a GPU.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field
from scipy.special import expit

from infra.scoring.model_file import INPUT, LOGIT
from tasks.models import Deadline, Device, FitResult, Images, Recipe, TrainingData
from tasks.models.device import why_no_gpu
from tasks.models.keras.batches import FIRST_EPOCH, batches, fits_on_device, scores, shown_on_device
from tasks.models.keras.callbacks import SCORING_BATCH, DeadlinePassed, accuracy, journal
from tasks.models.keras.cuda import built_for, missing_libraries, open_where_useful
from tasks.models.onnx_file import finish_onnx
from tasks.models.preparation import (
    BLACK,
    CONTRAST,
    MIRRORED,
    check_data,
    draw_batch,
    outcome,
    refuse_no_epoch,
    schedule_of,
)
from tasks.models.progress import FitProgress
from tasks.models.selection import Selection
from validation.records import EpochRecord
from validation.statistics.calibration import temperature_of

RECIPE_VERSION = 7
OPSET = 18

log = logging.getLogger(__name__)


class DefaultRecipe(Recipe):
    """Hyperparameters of the Keras CNN, each with the reason for its number (docs/training.md has the comparisons)."""

    # Fewer than a single network wants: 24 take half as long again, and a member gains 0.009 of log loss by ten more
    # (docs/training.md).
    epochs: int = Field(default=16, gt=0)
    # A small set has few steps an epoch: it gets more epochs, and proportionally more patience.
    min_steps: int = Field(default=500, ge=0)
    # 145 steps an epoch.
    batch_size: int = Field(default=32, ge=2)
    # The peak, after the warm-up. The only value tried.
    learning_rate: float = Field(default=2e-3, gt=0)
    # The first steps from random weights are the least stable.
    warmup: float = Field(default=1.5, ge=0)
    # 300,000 weights need little. The only value tried.
    weight_decay: float = Field(default=0.01, ge=0)
    # Before the only dense layer; 0.3 was worse on unseen patients (docs/training.md).
    dropout: float = Field(default=0.0, ge=0, lt=1)
    # Channels of the first stage, doubled by each of the next two. 64 take three times as long and are no better.
    width: int = Field(default=32, ge=8)
    # The tuning loss is noisy at the peak rate: with four, one lucky second epoch ended a fit after ten.
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
) -> FitResult:
    """Train until the tuning patients' loss plateaus, cool down, and export the epoch that is kept.

    Raises:
        TrainingFailed: when the data cannot be learned from, the loss diverges, or not one epoch fits the deadline.
    """
    deadline = Deadline(recipe.deadline_seconds)
    check_data(data, "keras")
    keras = _framework()
    device = _seeded_device(seed)
    side = data.train_images.shape[1]
    schedule = schedule_of(recipe, len(data.train_images))
    folder.mkdir(parents=True, exist_ok=True)

    keras.config.set_dtype_policy("float32" if device == "cpu" else "mixed_float16")
    network = _network(side, recipe)
    on_device = fits_on_device(data.train_images)
    trained = shown_on_device(network, data.train_images) if on_device else network
    trained.compile(
        optimizer=keras.optimizers.AdamW(recipe.learning_rate, weight_decay=recipe.weight_decay),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[accuracy],
        jit_compile=False,  # batches come in two sizes, and XLA would compile everything for each
    )
    _complete(trained)
    progress = FitProgress(schedule, deadline, Selection(data))
    kept = journal(recipe, progress, network, data.tuning_images, on_epoch)
    with contextlib.suppress(DeadlinePassed):
        trained.fit(
            batches(data, recipe, seed, lambda: len(progress.history), on_device=on_device),
            epochs=schedule.epochs,
            shuffle=False,  # the batches are shuffled by the recipe's seed
            callbacks=[kept],
            verbose=0,
        )
    refuse_no_epoch(progress, "keras", device)

    # Whatever the training's precision, the model is exported in float32, which every machine can score.
    keras.config.set_dtype_policy("float32")
    averaged = _averaged(side, recipe)
    averaged.set_weights(kept.best_weights)
    logits = scores(averaged, data.tuning_images, SCORING_BATCH // recipe.views)
    temperature = temperature_of(logits, data.tuning_labels > 0.5)
    scorer = _scorer(averaged, temperature)
    weights, onnx = folder / "weights.keras", folder / "model.onnx"
    scorer.save(weights)
    _export(scorer, onnx)
    return FitResult(
        onnx=onnx,
        weights=weights,
        device=device,
        versions=_versions(),
        temperature=temperature,
        batch=draw_batch(data, recipe.batch_size, recipe.variation, seed, folder, epoch=FIRST_EPOCH),
        **outcome(progress),
    )


def predict_native(weights: Path, recipe: DefaultRecipe, images: Images) -> npt.NDArray[np.float32]:
    """Return the probability of Parasitized for each cell, float32 [n], computed by Keras from the weights file."""
    if not len(images):
        return np.empty(0, np.float32)
    scorer = _framework().saving.load_model(weights, compile=False, safe_mode=True)
    return np.asarray(expit(scores(scorer, images, SCORING_BATCH // recipe.views)), np.float32)


def device() -> Device:
    """Return what ``fit`` trains on here, by TensorFlow's word."""
    _framework()
    name = _describe()
    return Device(name, why_no_gpu("TensorFlow", built_for(), missing_libraries) if name == "cpu" else "")


def _network(side: int, recipe: DefaultRecipe) -> Any:
    """Return uint8 [n, side, side, 3] -> logit [n, 1].

    Two convolutions halve the cell; three residual blocks (He et al. 2016) work at a half, a quarter and an eighth of
    its size. Each channel is pooled by its mean and by its maximum: a mean alone dilutes a parasite, which is small.
    """
    from keras import Input, Model, layers

    def convolve(x: Any, width: int, size: int, name: str, *, stride: int = 1, relu: bool = True) -> Any:
        x = layers.Conv2D(width, size, strides=stride, padding="same", use_bias=False, name=f"conv{name}")(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"norm{name}")(x)
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
    """Return uint8 [n, side, side, 3] -> float32: each cell's colours minus their mean, its padding 0.

    Stain and light differ between slides by more than a parasite differs from the cell around it.
    """
    from keras import ops

    cells = ops.cast(images, "float32") / 255
    inside = ops.cast(ops.max(cells, axis=-1, keepdims=True) > BLACK, "float32")
    pixels = ops.maximum(ops.sum(inside, axis=(1, 2), keepdims=True), 1)  # 0 in an all-black picture
    mean = ops.sum(cells * inside, axis=(1, 2), keepdims=True) / pixels
    return (cells - mean) * inside * CONTRAST


def _averaged(side: int, recipe: DefaultRecipe) -> Any:
    """Return uint8 [n, side, side, 3] -> logit [n], the mean over a cell and its mirror images.

    Its weights are the network's, in the network's order.
    """
    from keras import Input, Model, ops

    cells = images = Input((side, side, 3), dtype="uint8", name=INPUT)
    for axis in MIRRORED[recipe.views]:
        # ops.flip would become a dozen nodes in the model file, in varying order.
        mirrored = images[:, ::-1] if axis == 1 else images[:, :, ::-1]
        images = ops.concatenate([images, mirrored])
    logits = _network(side, recipe)(images)
    return Model(cells, ops.mean(ops.reshape(logits, (recipe.views, -1)), axis=0), name="averaged")


def _complete(network: Any) -> None:
    """Create the variables that the first step would create: its graph would be traced a second time, for 3 s."""
    network.optimizer.build(network.trainable_variables)
    network.compute_metrics(None, np.zeros(1, np.float32), np.zeros((1, 1), np.float32))


def _scorer(averaged: Any, temperature: float) -> Any:
    """Return uint8 [n, side, side, 3] -> logit [n], calibrated."""
    from keras import Model, layers

    return Model(averaged.input, layers.Rescaling(1 / temperature, name=LOGIT)(averaged.output), name="scorer")


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
        open_where_useful()
        import keras
        import tensorflow as tf  # noqa: F401  (writes to stderr when imported: silenced here)
    for name in ("tensorflow", "tf2onnx"):  # a worker's log needs no hints about retracing and optimisers
        logging.getLogger(name).setLevel(logging.ERROR)
    return keras


def _seeded_device(seed: int) -> str:
    """Return this machine's device, with all random generators seeded."""
    import keras
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # an earlier fit in this process has initialised the devices already
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    return _describe()


def _describe() -> str:
    import tensorflow as tf

    for gpu in tf.config.list_physical_devices("GPU"):
        return f"cuda: {tf.config.experimental.get_device_details(gpu).get('device_name', gpu.name)}"
    return "cpu"


@contextlib.contextmanager
def _stderr_to_log() -> Iterator[None]:
    """Send what TensorFlow's C++ writes to the process's stderr to the log; TensorFlow has no setting for it."""
    stderr = os.dup(2)
    with tempfile.TemporaryFile("w+", errors="replace") as captured:
        os.dup2(captured.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            captured.seek(0)
            for line in captured:
                log.debug(line.rstrip())


def _versions() -> dict[str, str]:
    import keras
    import tensorflow as tf

    return {"tensorflow": tf.__version__, "keras": keras.__version__, "onnx_opset": str(OPSET)}
