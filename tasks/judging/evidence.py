"""What an evaluation rests on, as digests; and the seal by which a changed evaluation is noticed.

The bucket has the evaluation, the registry its digest: whoever can write to one of them alone cannot change what a
promotion rests on.
"""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd

from infra.registry.registry import Registry
from validation.digest import digest
from validation.errors import NotReproduced
from validation.records import Evaluation

log = logging.getLogger(__name__)

SEAL = "evaluation."


def judged_digest(predictions: pd.DataFrame) -> str:
    """Return the digest of the judged cells of a table of predictions: content, patient, fold and label of each."""
    return digest(*(predictions[name].tolist() for name in ("sha256", "patient", "fold", "label")))


def counts_digest(predictions: pd.DataFrame, role: str, threshold: float) -> str:
    """Return the digest of a model's right calls by patient: true positives, positives, true negatives, negatives."""
    calls = predictions[role].to_numpy(np.float64) >= threshold
    positive = predictions["label"].to_numpy() == 1
    cells = pd.DataFrame(
        {"tp": calls & positive, "positives": positive, "tn": ~calls & ~positive, "negatives": ~positive}, dtype=int
    )
    counts = cells.groupby(predictions["patient"].to_numpy()).sum().sort_index()
    return digest(counts.index.tolist(), counts.to_numpy().tolist())


def evaluation_digest(evaluation: Evaluation) -> str:
    """Return the digest of what decisions rest on: the same on every machine, and for later versions."""
    text = evaluation.model_dump_json(exclude={"milliseconds", "other", "other_metrics"}, exclude_defaults=True)
    return digest(text.encode())


def seal(registry: Registry, evaluation: Evaluation) -> bool:
    """Write the digest of an evaluation into the registry, once; return False when another is there already."""
    text = evaluation_digest(evaluation)
    return registry.put_if_absent(f"{SEAL}{evaluation.id}", text) == text


def is_sealed(registry: Registry, evaluation: Evaluation) -> bool:
    """Whether an evaluation from the bucket is the one that was made."""
    try:
        verify_sealed(registry, evaluation)
    except NotReproduced as error:
        log.error("%s", error)
        return False
    return True


def verify_sealed(registry: Registry, evaluation: Evaluation, *, required: bool = True) -> None:
    """Compare an evaluation from the bucket with the registry's digest of it.

    Raises:
        NotReproduced: when it is another, or, if ``required``, when there is none.
    """
    sealed = registry.entries_with_prefix(f"{SEAL}{evaluation.id}").get("")
    if sealed != evaluation_digest(evaluation) and (required or sealed is not None):
        found = "has no digest of it" if sealed is None else "has the digest of another"
        raise NotReproduced(
            f"evaluation {evaluation.id} in the bucket is not the one that was made: the registry {found}",
            "find out who changed it; the champion stays. A night over other cells makes a new evaluation",
        )
