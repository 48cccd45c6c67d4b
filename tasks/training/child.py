"""The process that trains one CNN: ``python -m tasks.training.child PARENT FOLDER``.

FOLDER contains request.json, labels.npy, patients.npy (those of validation) and the weights to start from, if any; the
process adds model.onnx, the native weights and, last and atomically, result.json.
Standard output has one JSON object per line: ``{"epoch": ...}``, ``{"warning": ...}``, or, before exit 1,
``{"error": ..., "hint": ...}``.
On several devices it may launch one process for each, as ``... PARENT FOLDER BATCH_SIZE``.
A separate process, so that none ever loads both frameworks and all of its memory is released.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from infra.local.files import write_atomic
from infra.processes.parent import die_with_parent
from tasks.models import FitResult, Recipe, TrainingData, get_model
from tasks.models.fastai import ranks as fastai_ranks
from tasks.models.memory import fit_in_memory, out_of_memory
from validation.digest import sha256
from validation.errors import RetrainError
from validation.records import EpochRecord

PROGRAM = "tasks.training.child"


def main(folder: Path, batch_size: str | None = None) -> None:
    """Carry out request.json in ``folder``; ``batch_size`` is given to a rank among several processes."""
    request = json.loads((folder / "request.json").read_text())
    model = get_model(request["model"])
    # Frameworks print to standard output, which is reserved for the report.
    report = sys.stdout
    sys.stdout = sys.stderr

    def send(message: dict[str, Any]) -> None:
        if os.environ.get("RANK", "0") == "0":
            report.write(json.dumps(message) + "\n")
            report.flush()

    started, devices = time.monotonic(), request["devices"]

    def fit(recipe: Recipe) -> None:
        fitted = model.fit(
            _data(folder, request),
            recipe,
            seed=request["seed"],
            folder=folder,
            on_epoch=lambda epoch: send({"epoch": epoch.model_dump()}),
            devices=devices,
            start=folder / request["start"] if request["start"] else None,
        )
        _save_result(folder, fitted, recipe, time.monotonic() - started)

    def launch(recipe: Recipe) -> None:
        fastai_ranks.launch(devices, PROGRAM, folder, str(recipe.batch_size))

    recipe = model.DefaultRecipe(**request["recipe"])
    try:
        if batch_size is not None:
            _fit_as_rank(fit, recipe.model_copy(update={"batch_size": int(batch_size)}), folder)
        else:
            apart = devices > 1 and model.PROCESS_PER_DEVICE
            fit_in_memory(launch if apart else fit, recipe, lambda warning: send({"warning": warning}))
    except RetrainError as error:
        send({"error": error.message, "hint": error.hint})
        raise SystemExit(1) from None


def _fit_as_rank(fit: Callable[[Recipe], None], recipe: Recipe, folder: Path) -> None:
    try:
        fit(recipe)
    except Exception as error:
        if out_of_memory(error):
            (folder / fastai_ranks.OUT_OF_MEMORY).touch()  # the launcher starts over with smaller batches
        raise


def _save_result(folder: Path, fit: FitResult, recipe: Recipe, seconds: float) -> None:
    """Write result.json, after all other files."""
    result = {
        **asdict(fit),
        "onnx": fit.onnx.name,
        "weights": fit.weights.name,
        "batch_size": recipe.batch_size,
        "batch": fit.batch.name if fit.batch else None,
        "history": [EpochRecord.model_dump(epoch) for epoch in fit.history],
        "sha256": {path.name: sha256(path.read_bytes()) for path in (fit.onnx, fit.weights)},
        "seconds": round(seconds + fit.seconds_before, 2),
        # ru_maxrss is in KiB on Linux.
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }
    write_atomic(folder / "result.json", json.dumps(result, indent=2).encode())


def _data(folder: Path, request: dict[str, Any]) -> TrainingData:
    images = np.load(request["pack"], mmap_mode="r", allow_pickle=False)
    labels = np.load(folder / "labels.npy", allow_pickle=False)
    train, valid = slice(*request["train"]), slice(*request["validation"])
    patients = np.load(folder / "patients.npy", allow_pickle=False)
    return TrainingData(images[train], labels[train], images[valid], labels[valid], patients)


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    main(Path(sys.argv[2]), *sys.argv[3:])
