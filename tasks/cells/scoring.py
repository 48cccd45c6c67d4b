"""Score one side of a split with one model file: the same way for every model."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from infra.scoring.model_file import ModelFile
from tasks.cells.packing import draw_cells
from tasks.cells.side_data import SideData
from tasks.context import Context
from validation.errors import ModelFileInvalid
from validation.statistics.metrics import Scored


@dataclass(frozen=True)
class ScoredFile:
    """A model file's scores, and the milliseconds per image on this machine (scoring alone)."""

    scored: Scored
    milliseconds: float


def score_side(context: Context, model: bytes, sha256: str, threshold: float, side: SideData) -> ScoredFile:
    """Score the cells of a side, at the size that the model was trained at, whatever the setting is now.

    Raises:
        ModelFileInvalid: when the file is not the recorded one, breaks the contract, or gives scores that are not
            probabilities.
        RetrainError: when the cells cannot be read, which is not the model's fault.
    """
    file = ModelFile(model, sha256_expected=sha256)
    if side.images.shape[1] != file.side:
        images = np.zeros((len(side.keys), file.side, file.side, 3), np.uint8)
        draw_cells(context, list(zip(side.keys, side.sha256, strict=True)), images)
        side = replace(side, images=images)
    started = time.perf_counter()
    try:
        probabilities = file.score(side.images).astype(np.float64)
    except ModelFileInvalid:
        raise
    except Exception as error:  # any error of onnxruntime for a graph that loads and does not run
        raise ModelFileInvalid(f"the model does not run: {str(error)[:200]}", "retrain, or roll back") from error
    elapsed = time.perf_counter() - started
    bad = int((~((probabilities >= 0) & (probabilities <= 1))).sum())
    if bad:
        raise ModelFileInvalid(
            f"{bad} of {len(probabilities)} scores are not probabilities (NaN, or outside 0 to 1)",
            "the model is broken: retrain, or roll back",
        )
    return ScoredFile(side.scored(probabilities, threshold), 1000 * elapsed / max(1, len(probabilities)))
