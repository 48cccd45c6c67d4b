"""Device: how long both CNNs train on this machine's GPU, or its CPU, and what share of its arithmetic they use.

    python -m benchmarks.device [--cells 6890 27558] [--models fastai,keras] [--folder WORK] [--json FILE]
    python -m benchmarks.device --recipe '{"batch_size": 128}'
    python -m benchmarks.device --cells 600 --recipe '{"epochs": 1, "min_steps": 0}'     a minute, to see that it runs

The cells are synthetic, so that it runs where no data is: it tells about speed. A few hundred are drawn, and repeated;
seven tenths are trained on, a tenth tunes, as for a member. Recipes are the default ones, and may
end early. Each training is a process of its own, one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.roofline import peak_flops, training_flops
from benchmarks.scale import labels_of, make_cells, stage_of
from benchmarks.training_table import aligned
from tasks.models import TrainingData, get_model, model_names

TRAIN, TUNING = 0.7, 0.1
ROWS = (
    ("device", "s"),
    ("epochs", "d"),
    ("seconds", ".1f"),
    ("first_seconds", ".1f"),
    ("images_per_second", ".0f"),
    ("tflops", ".2f"),
    ("roofline_share", ".3f"),
)


def make_pack(home: Path, count: int) -> None:
    """Draw and pack ``count`` cells of 64 pixels, once."""
    if not (home / "packed").exists():
        home.mkdir(parents=True, exist_ok=True)
        make_cells(home, count)
        stage_of("pack", home)[1]()
        (home / "packed").touch()


def run(name: str, home: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Train one CNN in this process, and return what it took."""
    images, labels = np.load(home / "pack.npy", mmap_mode="r"), labels_of(home)
    train, valid = int(TRAIN * len(images)), int(TUNING * len(images))
    rest = slice(train, train + valid)
    data = TrainingData(images[:train], labels[:train], images[rest], labels[rest])
    model = get_model(name)
    recipe, began = model.DefaultRecipe(**changes), time.perf_counter()
    fit = model.fit(data, recipe, seed=1, folder=home / name, on_epoch=lambda epoch: print(epoch, file=sys.stderr))
    epochs, seconds = len(fit.history), [epoch.seconds for epoch in fit.history]
    flops = training_flops(fit.onnx, recipe, epochs, train, valid) / sum(seconds)
    return {
        "model": name,
        "cells": len(images),
        "device": fit.device,
        "versions": fit.versions,
        "cores": len(os.sched_getaffinity(0)),
        "epochs": epochs,
        # All of the fit: what comes before the first epoch and after the last is the framework's start and the export.
        "seconds": time.perf_counter() - began,
        "first_seconds": seconds[0],
        "epoch_seconds": seconds,
        "images_per_second": train * epochs / sum(seconds),
        "tflops": flops / 1e12,
        "roofline_share": flops / peak_flops(name, fit.device),
    }


def table(results: list[dict[str, Any]]) -> str:
    """Return a column for each training."""
    lines = [["", *(f"{result['model']}, {result['cells']:,} cells" for result in results)]]
    lines += [[key.replace("_", " "), *(format(result[key], how) for result in results)] for key, how in ROWS]
    return "\n".join(aligned(lines))


def main() -> None:
    """Train each CNN on each number of cells, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[6890, 27558])
    parser.add_argument("--models", default=",".join(model_names()))
    parser.add_argument("--recipe", type=json.loads, default={}, help='settings of both, as in {"batch_size": 128}')
    parser.add_argument("--folder", type=Path, help="keeps the cells that were drawn")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        print(json.dumps(run(given.job[0], Path(given.job[1]), given.recipe)))
        return
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        for count in given.cells:
            home = (given.folder or Path(temporary)) / str(count)
            make_pack(home, count)
            for name in given.models.split(","):
                job = ["--job", name, str(home), "--recipe", json.dumps(given.recipe)]
                command = [sys.executable, "-m", __spec__.name, *job]
                ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                results.append(json.loads(ended.stdout.splitlines()[-1]))
                print(table(results[-1:]), file=sys.stderr, flush=True)
    if given.json:
        given.json.write_text(json.dumps(results, indent=1))
    print(table(results))


if __name__ == "__main__":
    main()
