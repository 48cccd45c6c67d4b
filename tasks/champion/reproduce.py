"""Reproduce: before a version becomes champion, its file, downloaded again, must give the predictions it was judged by.

In a clean process, over the same cells in the same order, each by the member of its fold, equal to the last bit of
float32. Without recorded predictions the file is at least loaded and run, and the result says so.
"""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt
import pandas as pd

from infra.registry.registry import Registry
from infra.scoring.isolated import rescore
from infra.scoring.model_file import ModelFile
from tasks.cells.packing import draw_cells
from tasks.context import Context
from tasks.judging.evidence import counts_digest, judged_digest
from validation.errors import ModelFileInvalid, NotReproduced, RetrainError, Unreachable
from validation.records import Candidate, ChampionRef, Decision, Evaluation

log = logging.getLogger(__name__)


class _NothingToCompare(Exception):
    """Why a model file can only be loaded and run."""


def reproduce(
    context: Context, registry: Registry, reference: ChampionRef, decision: Decision | None, *, strict: bool
) -> str:
    """Try a version's model file; return the result in one sentence.

    ``strict``: a decision that rests on an evaluation must be compared with it; loading the file is not enough.

    Raises:
        ModelFileInvalid: when the file is not the registered one or does not load and run in a clean process.
        NotReproduced: when it scores any judged cell otherwise than the evaluation recorded.
    """
    model = registry.model_bytes(reference)
    _refuse_other_than_trained(context, reference)
    side = ModelFile(model, sha256_expected=reference.model_sha256, threads=1).side
    try:
        evaluation, table, images = _recorded(context, reference, decision, side)
    except _NothingToCompare as reason:
        if strict and decision is not None and decision.evaluation is not None:
            raise NotReproduced(
                f"version {reference.version} cannot be compared with its recorded predictions: {reason}",
                "the champion stays; run the night again, or promote it by hand: `retrain promote DECISION --why ...`",
            ) from reason
        scores = rescore(model, np.zeros((1, side, side, 3), np.uint8), sha256_expected=reference.model_sha256)
        if not np.isfinite(scores).all():
            raise ModelFileInvalid("the model file scores a black image as NaN", "retrain, or roll back") from None
        sentence = f"Loaded and run in a clean process; its predictions could not be compared: {reason}"
        log.warning("version %s: %s", reference.version, sentence)
        return sentence
    recorded = table["challenger"].to_numpy(np.float32)  # stored as float64 from float32: the conversion is exact
    folds = table["fold"].to_numpy(np.int64)
    scores = rescore(model, images, sha256_expected=reference.model_sha256, folds=folds)
    sentence = _compare(scores, recorded, reference, context.settings.promotion.tolerance)
    _refuse_other_counts(evaluation, table, reference)
    log.info("version %s: %s", reference.version, sentence)
    return sentence


def _refuse_other_than_trained(context: Context, reference: ChampionRef) -> None:
    """Refuse a version whose file and checksum were both replaced in the registry: the store has the checksum too."""
    candidate = context.records.find(Candidate, reference.candidate)
    if candidate is not None and candidate.model_sha256 != reference.model_sha256:
        raise ModelFileInvalid(
            f"version {reference.version} is registered with a model file of SHA-256 {reference.model_sha256}, "
            f"its candidate {candidate.id} was trained to {candidate.model_sha256}",
            "the registry was tampered with: choose another version",
        )


def _recorded(
    context: Context, reference: ChampionRef, decision: Decision | None, side: int
) -> tuple[Evaluation, pd.DataFrame, npt.NDArray[np.uint8]]:
    """Return the evaluation, its table of predictions, and their cells, uint8 [n, side, side, 3]."""
    if decision is None or decision.evaluation is None:
        raise _NothingToCompare("its decision rests on no evaluation")
    try:
        evaluation = context.records.load(Evaluation, decision.evaluation)
        table = context.records.load_table(evaluation.predictions)
        if evaluation.challenger != reference.candidate:
            raise _NothingToCompare(f"evaluation {evaluation.id} is of another candidate")
        if not len(table):
            raise _NothingToCompare(f"evaluation {evaluation.id} has no cells")
        images = np.empty((len(table), side, side, 3), np.uint8)
        draw_cells(context, list(zip(table["key"], table["sha256"], strict=True)), images)
    except Unreachable:
        raise
    except RetrainError as error:
        raise _NothingToCompare(error.message) from error
    return evaluation, table, images


def _refuse_other_counts(evaluation: Evaluation, predictions: pd.DataFrame, reference: ChampionRef) -> None:
    """Raise NotReproduced unless cells, folds and labels are the judged ones, and so are the calls of every patient.

    The predictions are those of the file, which was compared with them.
    """
    hint = "the champion stays. Find out what was changed, or run the night again"
    if judged_digest(predictions) != evaluation.judged:
        raise NotReproduced(
            f"the judged cells of evaluation {evaluation.id} were changed: patients, folds or labels", hint
        )
    if counts_digest(predictions, "challenger", reference.threshold) != evaluation.counts["challenger"]:
        raise NotReproduced(
            f"version {reference.version} at threshold {reference.threshold!r} does not make the calls that evaluation "
            f"{evaluation.id} counted",
            hint,
        )


def _compare(
    scores: npt.NDArray[np.float32], recorded: npt.NDArray[np.float32], reference: ChampionRef, tolerance: float
) -> str:
    cells = f"{len(recorded):,} cells scored again in a clean process"
    if np.array_equal(scores, recorded):
        return f"{cells}: equal to the recorded predictions to the last bit"
    if scores.shape != recorded.shape:
        scores = np.full_like(recorded, np.nan)
    different, apart = int((scores != recorded).sum()), float(np.abs(scores - recorded).max())
    # In float64, as a night calls: NumPy would round the threshold to float32.
    new, old = (values.astype(np.float64) >= reference.threshold for values in (scores, recorded))
    same_calls = np.array_equal(new, old)
    if apart <= tolerance and same_calls:
        return f"{cells}: {different:,} differ by at most {apart:.2g}, within the tolerance {tolerance:g}; no call does"
    raise NotReproduced(
        f"version {reference.version} does not give the predictions it was judged by: "
        f"{different:,} of {len(recorded):,} cells differ, by up to {apart:.2g}",
        "the champion stays. A difference of about 1e-7 comes from another kind of processor: promote on the machine "
        "that evaluated, or allow it (RETRAIN_PROMOTION__TOLERANCE=1e-6); any other means a changed file or cell",
    )
