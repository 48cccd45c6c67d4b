"""The process in which one CNN is trained: ``python -m tasks.train_child PARENT FOLDER``.

FOLDER holds request.json, labels.npy and is given model.onnx, the native weights and, last and whole, result.json.
Standard output is one JSON object a line: ``{"epoch": ...}``, ``{"warning": ...}``, or ``{"error": ..., "hint": ...}``
before exit 1.
A process of its own, so that none ever loads both frameworks and all of its memory is given back.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from infra.files import write_atomic
from infra.processes import die_with_parent
from tasks.models import TrainingData, get_model
from tasks.models.memory import fit_in_memory
from validation.digest import sha256
from validation.errors import RetrainError
from validation.records import EpochRecord


def main(folder: Path) -> None:
    """Train what request.json in ``folder`` asks for."""
    request = json.loads((folder / "request.json").read_text())
    model = get_model(request["model"])
    # Frameworks print what they like to standard output, which is ours to report on.
    report = sys.stdout
    sys.stdout = sys.stderr

    def tell(message: dict[str, Any]) -> None:
        report.write(json.dumps(message) + "\n")
        report.flush()

    started = time.monotonic()
    try:
        fit, recipe = fit_in_memory(
            lambda recipe: model.fit(
                _data(folder, request),
                recipe,
                seed=request["seed"],
                folder=folder,
                on_epoch=lambda epoch: tell({"epoch": epoch.model_dump()}),
            ),
            model.DefaultRecipe(**request["recipe"]),
            lambda warning: tell({"warning": warning}),
        )
    except RetrainError as error:
        tell({"error": error.message, "hint": error.hint})
        raise SystemExit(1) from None
    result = {
        **asdict(fit),
        "onnx": fit.onnx.name,
        "weights": fit.weights.name,
        "batch_size": recipe.batch_size,
        "batch": fit.batch.name if fit.batch else None,
        "history": [EpochRecord.model_dump(epoch) for epoch in fit.history],
        "sha256": {path.name: sha256(path.read_bytes()) for path in (fit.onnx, fit.weights)},
        "seconds": round(time.monotonic() - started + fit.seconds_before, 2),
        # ru_maxrss is in KiB on Linux.
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }
    write_atomic(folder / "result.json", json.dumps(result, indent=2).encode())


def _data(folder: Path, request: dict[str, Any]) -> TrainingData:
    images = np.load(request["pack"], mmap_mode="r", allow_pickle=False)
    labels = np.load(folder / "labels.npy", allow_pickle=False)
    train, valid = slice(*request["train"]), slice(*request["validation"])
    return TrainingData(images[train], labels[train], images[valid], labels[valid])


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    main(Path(sys.argv[2]))
