"""The process that trains one member: ``python -m tasks.training.child PARENT FOLDER``.

FOLDER contains request.json (model, recipe, seed, and pack, the path of a .npy) and rows.npz: ``train`` int64 [n] and
``tuning`` int64 [m], rows of the pack; ``train_labels`` float32 [n], ``tuning_labels`` float32 [m] and
``tuning_patients`` int64 [m]. The process adds model.onnx, the native weights and, last and atomically, result.json.
Standard output has one JSON object per line: ``{"device": ...}``, ``{"epoch": ...}``, ``{"batch": [done, total]}``,
``{"warning": ...}``, or, before exit 1, ``{"error": ..., "hint": ...}``. ``unusable_gpu`` of the request is the setting
of that name.
A separate process, so that none ever loads both frameworks and all of its memory is released.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import traceback
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from infra.local.files import write_atomic
from infra.processes.parent import die_with_parent
from tasks.models import FitResult, Recipe, TrainingData, get_model
from tasks.models.memory import fit_in_memory
from tasks.models.progress import heard_by
from tasks.models.rows import Rows
from tasks.training.device import UNUSED_HINT, ask_device, unused_gpu
from validation.digest import sha256
from validation.errors import RetrainError, TrainingFailed
from validation.records import EpochRecord

# Of an error's text, in characters.
LONGEST = 400
# Between two batches that are reported.
EVERY_SECONDS = 0.5


def main(folder: Path) -> None:
    """Carry out request.json in ``folder``."""
    started, started_at = time.monotonic(), datetime.now(UTC)
    request = json.loads((folder / "request.json").read_text())
    model = get_model(request["model"])
    # Frameworks print to standard output, which is reserved for the report.
    report = sys.stdout
    sys.stdout = sys.stderr

    def send(message: dict[str, Any]) -> None:
        report.write(json.dumps(message) + "\n")
        report.flush()

    heard = -EVERY_SECONDS

    def send_batch(done: int, total: int) -> None:
        nonlocal heard
        if (now := time.monotonic()) - heard >= EVERY_SECONDS:
            heard = now
            send({"batch": [done, total]})

    ended: dict[int, datetime] = {}

    def send_epoch(epoch: EpochRecord) -> None:
        ended[epoch.epoch] = datetime.now(UTC)
        send({"epoch": epoch.model_copy(update={"ended_at": ended[epoch.epoch]}).model_dump(mode="json")})

    def fit(recipe: Recipe) -> FitResult:
        return model.fit(
            _data(folder, Path(request["pack"])),
            recipe,
            seed=request["seed"],
            folder=folder,
            on_epoch=send_epoch,
        )

    try:
        device = ask_device(request["model"])
        send({"device": device.name})
        if unused := unused_gpu(device):
            if request["unusable_gpu"] == "fail":
                raise TrainingFailed(unused, UNUSED_HINT)
            send({"warning": unused})
        with heard_by(send_batch):
            fitted, recipe = fit_in_memory(
                fit, model.DefaultRecipe(**request["recipe"]), lambda warning: send({"warning": warning})
            )
    except RetrainError as error:
        send({"error": error.message, "hint": error.hint})
        raise SystemExit(1) from None
    except Exception as error:
        traceback.print_exc()
        send({"error": in_one_line(error)})
        raise SystemExit(1) from None
    history = [epoch.model_copy(update={"ended_at": ended.get(epoch.epoch)}) for epoch in fitted.history]
    fitted = replace(fitted, history=tuple(history))
    _save_result(folder, fitted, recipe, unused, started_at, time.monotonic() - started)


def in_one_line(error: Exception) -> str:
    """Return an error with its kind and message; of a long message, which may be a page, the beginning and the end."""
    text = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 150]} ... {text[-140:]}"


def _save_result(
    folder: Path, fit: FitResult, recipe: Recipe, unused: str, started_at: datetime, seconds: float
) -> None:
    """Write result.json, after all other files."""
    result = {
        **asdict(fit),
        "onnx": fit.onnx.name,
        "weights": fit.weights.name,
        "batch_size": recipe.batch_size,
        "unused_gpu": unused or None,
        "batch": fit.batch.name if fit.batch else None,
        "history": [epoch.model_dump(mode="json") for epoch in fit.history],
        "sha256": {path.name: sha256(path.read_bytes()) for path in (fit.onnx, fit.weights)},
        "started_at": started_at.isoformat(),
        "seconds": round(seconds, 2),
        # ru_maxrss is in KiB on Linux.
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }
    write_atomic(folder / "result.json", json.dumps(result, indent=2).encode())


def _data(folder: Path, pack: Path) -> TrainingData:
    images = np.load(pack, mmap_mode="r", allow_pickle=False)
    with np.load(folder / "rows.npz", allow_pickle=False) as rows:
        return TrainingData(
            Rows(images, rows["train"]),
            rows["train_labels"],
            Rows(images, rows["tuning"]),
            rows["tuning_labels"],
            rows["tuning_patients"],
        )


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    # Libraries look for settings where they run (matplotlibrc).
    os.chdir(sys.argv[2])
    main(Path(sys.argv[2]))
