"""Scores images with a model file in a clean process: numpy, onnxruntime and this project's scoring, nothing else.

``python -m infra.scoring.isolated FOLDER SHA256`` reads ``model.onnx``, ``images.npy`` and perhaps ``folds.npy`` there,
checks the model, writes ``scores.npy``, and prints the outcome as a line of JSON. It imports no framework, no Prefect
and no MLflow, and unpickles nothing: a model that works here works for anyone who has only the file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from infra.environment import CODE_ROOT
from infra.inherited import of_work
from infra.local.temporary import temporary_folder
from infra.scoring.model_file import ModelFile
from validation.errors import ModelFileInvalid

# None of these may be loaded when a model file is tried.
FRAMEWORKS = ("torch", "fastai", "tensorflow", "keras", "sklearn", "prefect", "mlflow", "pandas")
# All cells of the public archive, by fold, take minutes.
LIMIT_SECONDS = 900.0


def rescore(
    model: bytes,
    images: npt.NDArray[np.uint8],
    *,
    sha256_expected: str,
    folds: npt.NDArray[np.integer] | None = None,
) -> npt.NDArray[np.float32]:
    """Return the probabilities, float32 [n], of images uint8 [n, side, side, 3], computed in a new process.

    With ``folds``, int [n], each image is scored by the member of its fold.

    Raises:
        ModelFileInvalid: when the file is not the expected one, cannot be loaded, breaks its contract, cannot score the
            images, or has no member for one of the folds.
    """
    with temporary_folder("rescore") as folder:
        (folder / "model.onnx").write_bytes(model)
        np.save(folder / "images.npy", np.ascontiguousarray(images), allow_pickle=False)
        if folds is not None:
            np.save(folder / "folds.npy", folds, allow_pickle=False)
        # Tied to this process: it must not outlive it.
        command = ["infra.processes.parent", str(os.getpid()), "infra.scoring.isolated", str(folder), sha256_expected]
        try:
            done = subprocess.run(
                [sys.executable, "-m", *command], cwd=CODE_ROOT, env=of_work(os.environ),
                capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise ModelFileInvalid(
                f"scoring {len(images):,} images took over {LIMIT_SECONDS:.0f} s", "retrain, or roll back"
            ) from None
        answer = _answer(done)
        if "error" in answer:
            raise ModelFileInvalid(f"in its own process: {answer['error']}", str(answer.get("hint", "")))
        scores: npt.NDArray[np.float32] = np.load(folder / "scores.npy", allow_pickle=False)
    return scores


def _answer(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    try:
        answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1][:300]
        return {"error": f"it ended with code {done.returncode}: {last}"}
    return answer


def _score(folder: Path, expected: str) -> dict[str, object]:
    try:
        model = ModelFile((folder / "model.onnx").read_bytes(), sha256_expected=expected)
        model.check_members()
        images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        by_fold = (folder / "folds.npy").exists()
        folds = np.load(folder / "folds.npy", allow_pickle=False) if by_fold else None
        scores = model.score(images) if folds is None else model.score_by_fold(images, folds)
    except ModelFileInvalid as error:
        return {"error": error.message, "hint": error.hint}
    except Exception as error:
        # onnxruntime's errors, for a model that loads and cannot run.
        return {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    np.save(folder / "scores.npy", scores, allow_pickle=False)
    unclean = sorted(name for name in FRAMEWORKS if name in sys.modules)
    return {"error": f"not a clean process: {unclean} were loaded"} if unclean else {"cells": len(scores)}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_score(Path(sys.argv[1]), sys.argv[2])) + "\n")
