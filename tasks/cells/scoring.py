"""Score cells with a model file: the same way for every model, each by a member that has not seen its patient."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.scoring.model_file import ModelFile
from tasks.cells.cell_data import CellData
from tasks.cells.packing import draw_cells
from tasks.context import Context
from validation.errors import ModelFileInvalid
from validation.statistics.metrics import Scored


@dataclass(frozen=True)
class ScoredFile:
    """A model file's scores, and the milliseconds per image on this machine (scoring alone)."""

    scored: Scored
    milliseconds: float


def score_cells(
    context: Context, file: ModelFile, threshold: float, cells: CellData, members: npt.NDArray[np.int64] | None = None
) -> ScoredFile:
    """Score each cell by the column in ``members``, int [n]; by default that of its fold.

    A file without members scores all with its ``probability``. Cells have the size that the file was trained at,
    whatever the setting is now.

    Raises:
        ModelFileInvalid: when the file breaks the contract, or gives scores that are not probabilities.
        RetrainError: when the cells cannot be read, which is not the model's fault.
    """
    columns = cells.folds if members is None else members
    score = (lambda images: file.score_by_fold(images, columns)) if file.folds else file.score
    return _scored(context, file, threshold, cells, score)


def score_deployed(context: Context, file: ModelFile, threshold: float, cells: CellData) -> ScoredFile:
    """Score cells by ``probability``, as whoever uses the deployed file does; raises as ``score_cells`` does."""
    return _scored(context, file, threshold, cells, file.score)


def _scored(
    context: Context,
    file: ModelFile,
    threshold: float,
    cells: CellData,
    score: Callable[[Any], npt.NDArray[np.float32]],
) -> ScoredFile:
    images: Any = cells.images
    if images.shape[1] != file.side:
        images = np.zeros((len(cells), file.side, file.side, 3), np.uint8)
        draw_cells(context, list(zip(cells.keys, cells.sha256, strict=True)), images)
    started = time.perf_counter()
    scores = score(images)
    elapsed = time.perf_counter() - started
    probabilities = scores.astype(np.float64)
    bad = int((~((probabilities >= 0) & (probabilities <= 1))).sum())
    if bad:
        raise ModelFileInvalid(
            f"{bad} of {len(probabilities)} scores are not probabilities (NaN, or outside 0 to 1)",
            "the model is broken: retrain, or roll back",
        )
    return ScoredFile(cells.scored(probabilities, threshold), 1000 * elapsed / max(1, len(probabilities)))
