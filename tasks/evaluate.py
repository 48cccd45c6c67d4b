"""Evaluate: champion and challenger are judged by every patient.

Each patient is judged by the member of its fold, which has seen it neither in training nor in tuning. A look is decided
before its result is known, so a night that is killed in between has spent it, and repeats it at no further cost. The
other CNN is scored afterwards, for the report alone: it enters no gate and no choice.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from infra.registry.registry import Registry
from infra.store.records import content_key, table_bytes
from tasks.cells.cell_data import CellData, load_cells
from tasks.cells.scoring import ScoredFile, score_cells
from tasks.choose import Contest, candidate_file, judgeable
from tasks.context import Context
from tasks.judging.evidence import counts_digest, is_sealed, judged_digest, seal
from tasks.judging.ledger import take_look
from tasks.stage import stage
from validation.digest import digest
from validation.errors import ChampionUnusable, LedgerSpent, ModelFileInvalid, ObjectMissing
from validation.gate import GateResult, could_pass, level_of_look
from validation.patients import FOLDS
from validation.records import Candidate, Evaluation, Pack, Split, Verdict
from validation.statistics.metrics import METHOD_VERSION, compare, spreads, summarise

log = logging.getLogger(__name__)

Role = Literal["challenger", "champion", "reference", "other"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class NoLook:
    """Why a challenger that earned a look did not get one; with the gates of its best case, if not even that passes."""

    why: str
    best_case: GateResult | None = None


def evaluate(context: Context, contest: Contest, split: Split, pack: Pack, registry: Registry) -> Evaluation | NoLook:
    """Judge challenger, champion and reference by the same patients; then, for the report alone, the other CNN.

    No look is taken where no result on these patients could promote the challenger, or once those of a year are spent.

    Raises:
        ChampionUnusable: when the champion scored the tuning patients and cannot score the judging ones.
    """
    rules, challenger, champion = context.settings.gate, contest.challenger, contest.champion
    named = load_cells(context, split, pack).judged_by(range(FOLDS))
    cells = _judging(context, contest, named)
    id_ = _id(context, contest, split, cells)
    if (stored := _sealed(context, registry, id_)) is not None:
        return stored
    scores = _compared(context, contest, cells)
    new = scores["challenger"].scored
    old, first = (scores[role].scored if role in scores else None for role in ("champion", "reference"))
    if old is not None and (best := could_pass(new, old, rules, first)).verdict is not Verdict.PROMOTED:
        return NoLook("it could not pass even if it were right wherever the two differ", best)
    try:
        look = take_look(context, registry, challenger.model_sha256, champion.model_sha256 if champion else None)
    except LedgerSpent as error:
        log.error("%s", error)
        return NoLook(error.message)
    if contest.other and (other := _other(context, contest.other, cells)):
        scores["other"] = other
    table = _table(cells, scores)
    predictions = table_bytes(table)
    reference = contest.rivals.get("reference")
    metrics = {role: summarise(scored.scored) for role, scored in scores.items()}
    level = level_of_look(rules)
    result = Evaluation(
        id=id_,
        split=split.id,
        challenger=challenger.id,
        challenger_sha256=challenger.model_sha256,
        challenger_threshold=challenger.threshold,
        champion=champion,
        reference=reference.version if reference else None,
        look=look,
        predictions=content_key(Evaluation, id_, "predictions", predictions),
        judged=judged_digest(table),
        counts={role: counts_digest(table, role, scored.scored.threshold) for role, scored in scores.items()},
        challenger_metrics=metrics["challenger"],
        champion_metrics=metrics.get("champion"),
        differences=compare(new, old, resamples=rules.resamples, level=level) if old else {},
        spreads=spreads(new, old) if old else {},
        reference_differences=compare(new, first, resamples=rules.resamples, level=level) if first else {},
        unjudged=_unjudged(contest, named, cells),
        other=contest.other.id if contest.other and "other" in scores else None,
        other_metrics=metrics.get("other"),
        milliseconds={role: round(scored.milliseconds, 4) for role, scored in scores.items()},
    )
    return _keep(context, registry, result, predictions)


def _sealed(context: Context, registry: Registry, id_: str) -> Evaluation | None:
    """Return a stored evaluation; None for one that was placed there, or is not whole: it is made again."""
    stored = context.records.find_whole(Evaluation, id_)
    return stored if stored is not None and is_sealed(registry, stored) else None


def _keep(context: Context, registry: Registry, made: Evaluation, predictions: bytes) -> Evaluation:
    """Seal an evaluation, store it with its table, and return it; of two machines the first that seals it counts.

    Their scores may differ in the last bits. Where the first has not stored what it sealed, this one gets another id.
    """
    while not seal(registry, made):
        if (stored := _sealed(context, registry, made.id)) is not None:
            log.info("evaluation %s was made by another machine at the same time: its result counts", made.id)
            return stored
        again = digest(made.id, "again")
        log.warning("evaluation %s is another in the registry: it is kept as %s", made.id, again)
        made = made.model_copy(update={"id": again, "predictions": made.predictions.replace(made.id, again)})
    context.store.put(made.predictions, predictions)
    context.records.save(made, made.id)
    return made


def _id(context: Context, contest: Contest, split: Split, cells: CellData) -> str:
    """Return the id of an evaluation: a digest of all that determines it, known before anything is scored."""
    versions = [contest.champion, *(contest.rivals[role].version for role in ("reference",) if role in contest.rivals)]
    return digest(
        split.id,
        cells.digest,
        [contest.challenger.id, contest.challenger.model_sha256],
        [version and version.model_dump(exclude={"since"}) for version in versions],
        contest.other.id if contest.other else None,
        context.settings.gate.model_dump(),
        METHOD_VERSION,
    )


def _judging(context: Context, contest: Contest, named: CellData) -> CellData:
    """Return the cells by which challenger and every rival can be judged."""
    cells = named.take(np.isin(named.folds, contest.challenger.folds))
    for rival in contest.rivals.values():
        cells = cells.take(judgeable(context, rival, cells, cells.folds))
    return cells


def _unjudged(contest: Contest, named: CellData, cells: CellData) -> str:
    """Return why some patients with a name do not judge; empty where all do."""
    missing = named.patients_count - cells.patients_count
    if not missing:
        return ""
    reasons = []
    if len(contest.challenger.folds) < FOLDS:
        reasons.append(f"the challenger has {len(contest.challenger.folds)} of {FOLDS} members")
    for role, rival in contest.rivals.items():
        if not rival.file.folds:
            reasons.append(f"the {role}, version {rival.version.version}, has no members and has seen most of them")
        elif len(rival.file.folds) < FOLDS:
            reasons.append(
                f"the {role}, version {rival.version.version}, has {len(rival.file.folds)} of {FOLDS} members"
            )
    return f"{missing} of {named.patients_count} patients do not judge: {'; '.join(reasons)}"


def _compared(context: Context, contest: Contest, cells: CellData) -> dict[Role, ScoredFile]:
    """Score challenger, champion and reference on the same cells."""
    challenger = contest.challenger
    scores: dict[Role, ScoredFile] = {
        "challenger": score_cells(context, candidate_file(context, challenger), challenger.threshold, cells)
    }
    for role, rival in contest.rivals.items():
        try:
            scores[role] = score_cells(context, rival.file, rival.version.threshold, cells)
        except ModelFileInvalid as error:
            raise ChampionUnusable(f"version {rival.version.version}: {error.message}", error.hint) from error
    return scores


def _other(context: Context, other: Candidate, cells: CellData) -> ScoredFile | None:
    """Score the other CNN, where it has all members; a report without it is better than no night."""
    try:
        if set(cells.folds.tolist()) <= set(other.folds):
            return score_cells(context, candidate_file(context, other), other.threshold, cells)
        log.warning("%s, the other CNN, lacks members and is not judged", other.model)
    except (ModelFileInvalid, ObjectMissing) as error:
        log.warning("%s, the other CNN, is not judged: %s", other.model, error.message)
    return None


def _table(cells: CellData, scores: Mapping[Role, ScoredFile]) -> pd.DataFrame:
    """Return one row for each cell, with NaN for a model that was not scored."""
    unscored = np.full(len(cells), np.nan)
    probabilities: dict[str, Any] = {
        role: scores[role].scored.probabilities if role in scores else unscored for role in ROLES
    }
    return pd.DataFrame(
        {
            "key": cells.keys,
            "sha256": cells.sha256,
            "patient": cells.patients,
            "fold": cells.folds,
            "label": cells.labels.astype(int),
            **probabilities,
        }
    )


evaluate_task = stage(evaluate)
