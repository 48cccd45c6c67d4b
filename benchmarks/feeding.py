"""Feeding: how the Keras CNN's batches reach it, by our dataset and by the ways that Keras has for it.

    python -m benchmarks.feeding [--cells 4641] [--epochs 4] [--rounds 3] [--json FILE]

Random cells; the same batches, the same network, one way after the other, in each round in another order. Seconds of
an epoch, and of its scoring by ``predict``, with what the process computed in them: a way that waits for something
takes longer than half of its CPU seconds on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tasks.models import TrainingData
from tasks.models.keras import cnn as keras_cnn

OURS, KERAS, THREADS = "ours", "PyDataset", "PyDataset, two threads"


def ways(data: TrainingData, network: Any) -> dict[str, tuple[Callable[[], Any], Callable[[], Any] | None]]:
    """Return for each way what makes the training batches, and what scores all cells where that is another way too."""
    import keras

    from tasks.models.keras.batches import batches, scores
    from tasks.models.keras.callbacks import SCORING_BATCH

    recipe = keras_cnn.DefaultRecipe()
    made = list(batches(data, recipe, 1, lambda: 0, on_device=False).as_numpy_iterator())

    class Batches(keras.utils.PyDataset):  # type: ignore[misc]
        def __len__(self) -> int:
            return len(made)

        def __getitem__(self, number: int) -> Any:
            return made[number]

    def score_by_keras() -> Any:
        return network.predict(data.train_images, batch_size=SCORING_BATCH, verbose=0)

    return {
        OURS: (
            lambda: batches(data, recipe, 1, lambda: 0, on_device=False),
            lambda: scores(network, data.train_images, SCORING_BATCH),
        ),
        KERAS: (Batches, score_by_keras),
        THREADS: (lambda: Batches(workers=2), None),
    }


def measure(cells: int, epochs: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Return seconds and CPU seconds of every epoch, and of every scoring, by way."""
    keras = keras_cnn._framework()
    keras_cnn._seeded_device(1)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (cells, 64, 64, 3), dtype=np.uint8)
    labels = (np.arange(cells) % 2).astype(np.float32)
    data = TrainingData(images, labels, images[:2], labels[:2])
    network = keras_cnn._network(64, keras_cnn.DefaultRecipe())
    network.compile(optimizer="adamw", loss=keras.losses.BinaryCrossentropy(from_logits=True), jit_compile=False)
    all_ways = ways(data, network)
    found: dict[str, dict[str, list[float]]] = {way: {} for way in all_ways}

    def timed(way: str, what: str, began: tuple[float, float]) -> tuple[float, float]:
        now = time.perf_counter(), time.process_time()
        for kind, before, after in zip(("seconds", "CPU seconds"), began, now, strict=True):
            found[way].setdefault(f"{what}, {kind}", []).append(after - before)
        return now

    for number in range(-1, rounds):  # the first traces everything, and does not count
        for way in np.random.default_rng(number + 1).permutation(list(all_ways)).tolist():
            make, score = all_ways[way]
            began = [(time.perf_counter(), time.process_time())]

            def end(*_: Any, way: str = way, began: list[tuple[float, float]] = began) -> None:
                began[0] = timed(way, "epoch", began[0])

            network.fit(
                make(),
                epochs=epochs if number >= 0 else 1,
                shuffle=False,
                verbose=0,
                callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=end)],
            )
            if score:
                began[0] = time.perf_counter(), time.process_time()
                score()
                timed(way, "scoring", began[0])
        if number < 0:
            found = {way: {} for way in all_ways}
    return found


def main() -> None:
    """Train and score by each way, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=4641)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = measure(given.cells, given.epochs, given.rounds)
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"{cores} cores, load {load:.1f}, {given.cells:,} cells; medians (lowest to highest)")
    for what in found[OURS]:
        for way, times in found.items():
            if what not in times:
                continue
            seconds, own = times[what], statistics.median(found[OURS][what])
            spread = f"({min(seconds):.1f} to {max(seconds):.1f})"
            middle = statistics.median(seconds)
            print(f"{what:22}{way:24}{middle:7.1f} {spread:18}{middle / own:6.2f} of ours")
    if given.json:
        given.json.write_text(json.dumps({"cores": cores, "cells": given.cells, "found": found}, indent=1))


if __name__ == "__main__":
    main()
