"""The two recipes that this project began with, as the notebook had them, on our patients.

The notebook: R. Zacchigna, "Malaria Cell Image Classification" (2021), which trained both on a quarter of the NLM set
with a random split. Here they get the training and validation patients of the project's split, and are scored on its
holdout. What else differs: today's library versions; float32, since there is no GPU (fastai's ``to_fp16`` was without
effect on the notebook's machine too); workers load the images where Windows could not.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

CLASSES = ["Uninfected", "Parasitized"]
# What decides how they go: a result belongs to these.
RECIPES: dict[str, dict[str, Any]] = {
    "notebook-fastai": {"architecture": "xresnet34", "side": 224, "batch": 64, "fine_tune": 5, "zoom": 1.2},
    "notebook-keras": {"side": 128, "batch": 16, "epochs": 20, "patience": 2, "filters": [16, 32, 64], "dense": 64},
}


@dataclass(frozen=True)
class Side:
    """The cells of one side: files, and whether each is Parasitized."""

    files: tuple[Path, ...]
    labels: npt.NDArray[np.bool_]

    def share(self, share: float, seed: int) -> Side:
        """Return this share of the cells, drawn by chance."""
        count = max(1, round(share * len(self.files)))
        chosen = np.random.default_rng(seed).permutation(len(self.files))[:count]
        return Side(tuple(self.files[index] for index in chosen), self.labels[chosen])

    def frame(self) -> pd.DataFrame:
        """Return a table of paths and class names, as both libraries take it."""
        names = [CLASSES[int(label)] for label in self.labels]
        return pd.DataFrame({"path": [str(file) for file in self.files], "label": names})


@dataclass(frozen=True)
class Ran:
    """How a reference went: seconds of its training, whether they were extrapolated, and what it says of the cells.

    ``valid`` and ``test``: probabilities of Parasitized by its last epoch, which is the one that the notebook kept.
    """

    seconds: float
    extrapolated: bool
    epochs: int
    images: int
    valid: npt.NDArray[np.float64] | None
    test: npt.NDArray[np.float64] | None


def run(name: str, train: Side, valid: Side, test: Side, *, seed: int, share: float) -> Ran:
    """Train a reference; with a ``share`` below one fastai's on as much of the cells, for the time alone.

    Keras's own stops by its validation loss, which a share would change: it is always trained whole.
    """
    if name == "notebook-keras":
        return _keras(train, valid, test, seed)
    return _fastai(train, valid, test, seed, share)


def _fastai(train: Side, valid: Side, test: Side, seed: int, share: float) -> Ran:
    from fastai.callback import schedule  # noqa: F401  (gives a Learner its fine_tune)
    from fastai.callback.core import Callback
    from fastai.callback.progress import ProgressCallback  # noqa: F401  (gives a Learner its no_bar)
    from fastai.data.block import CategoryBlock, DataBlock
    from fastai.data.transforms import ColReader, ColSplitter, Normalize
    from fastai.metrics import accuracy
    from fastai.torch_core import set_seed
    from fastai.vision.augment import Resize, aug_transforms
    from fastai.vision.core import imagenet_stats
    from fastai.vision.data import ImageBlock
    from fastai.vision.learner import vision_learner
    from fastai.vision.models.xresnet import xresnet34

    recipe, whole = RECIPES["notebook-fastai"], share >= 1
    steps_of_all = len(train.files) // recipe["batch"]
    if not whole:
        train, valid = train.share(share, seed), valid.share(share, seed)
    frame = pd.concat([train.frame().assign(valid=False), valid.frame().assign(valid=True)])
    set_seed(seed)
    block = DataBlock(
        blocks=[ImageBlock, CategoryBlock(vocab=CLASSES, sort=False)],
        get_x=ColReader("path"),
        get_y=ColReader("label"),
        splitter=ColSplitter("valid"),
        item_tfms=[Resize(recipe["side"])],
        batch_tfms=[
            *aug_transforms(flip_vert=True, max_zoom=recipe["zoom"], max_warp=0),
            Normalize.from_stats(*imagenet_stats),
        ],
    )
    loaders = block.dataloaders(frame, bs=recipe["batch"])
    # The notebook left fastai's default, pretrained weights, which XResNet34 had none of: the body was random, and as
    # fine_tune does it, frozen for one epoch. Today's fastai would fetch those of an XResNet50, which do not fit.
    learn = vision_learner(loaders, xresnet34, pretrained=False, metrics=[accuracy])

    class Clock(Callback):  # type: ignore[misc]
        """The seconds of each epoch."""

        seconds: Sequence[float] = ()

        def before_epoch(self) -> None:
            self.began = time.perf_counter()

        def after_epoch(self) -> None:
            self.seconds = [*self.seconds, time.perf_counter() - self.began]
            print(f"epoch of {self.seconds[-1]:.1f} s: {list(self.learn.recorder.log)}", flush=True)

    clock = Clock()
    began = time.perf_counter()
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(recipe["fine_tune"] if whole else 1, cbs=clock)
    seconds, epochs = time.perf_counter() - began, recipe["fine_tune"] + 1
    if not whole:
        # By steps, not by cells: those that fill no batch are left out.
        frozen, other = (seconds * steps_of_all / len(loaders.train) for seconds in clock.seconds)
        return Ran(frozen + recipe["fine_tune"] * other, True, epochs, len(train.files), None, None)
    valid_scores, test_scores = (
        learn.get_preds(dl=loaders.test_dl(side.frame()))[0][:, 1].numpy().astype(np.float64) for side in (valid, test)
    )
    return Ran(seconds, False, epochs, len(train.files), valid_scores, test_scores)


def _keras(train: Side, valid: Side, test: Side, seed: int) -> Ran:
    import os

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras
    import tensorflow as tf
    from keras import layers

    recipe = RECIPES["notebook-keras"]
    keras.utils.set_random_seed(seed)

    def flow(side: Side, *, shuffle: bool) -> Any:
        return tf.keras.preprocessing.image.ImageDataGenerator(rescale=1 / 255.0).flow_from_dataframe(
            side.frame(), x_col="path", y_col="label", target_size=(recipe["side"],) * 2, class_mode="binary",
            classes=CLASSES, batch_size=recipe["batch"], shuffle=shuffle, seed=seed,
        )  # fmt: skip

    network = keras.Sequential([layers.Input((recipe["side"], recipe["side"], 3))])
    for filters, dropout in zip(recipe["filters"], (0.2, 0.3, 0.3), strict=True):
        network.add(layers.Conv2D(filters, 3, activation="relu"))
        network.add(layers.MaxPool2D(2, 2))
        network.add(layers.Dropout(dropout))
    for layer in (
        layers.Flatten(),
        layers.Dense(recipe["dense"], activation="relu"),
        layers.Dropout(0.5),
        layers.Dense(1, activation="sigmoid"),
    ):
        network.add(layer)
    network.compile(optimizer="adam", loss="binary_crossentropy", metrics=["accuracy"])
    began = time.perf_counter()
    history = network.fit(
        flow(train, shuffle=True),
        epochs=recipe["epochs"],
        validation_data=flow(valid, shuffle=True),
        callbacks=[keras.callbacks.EarlyStopping(monitor="val_loss", patience=recipe["patience"])],
        verbose=2,
    )
    seconds = time.perf_counter() - began
    valid_scores, test_scores = (
        network.predict(flow(side, shuffle=False), verbose=0)[:, 0].astype(np.float64) for side in (valid, test)
    )
    return Ran(seconds, False, len(history.epoch), len(train.files), valid_scores, test_scores)
