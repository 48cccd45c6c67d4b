"""Evaluate: the challenger is chosen on tuning patients; then champion and challenger are judged by every patient.

Each patient is judged by the member of its fold, which has seen it neither in training nor in tuning. A look is decided
before its result is known, so a night that is killed in between has spent it, and repeats it at no further cost. The
other CNN is scored afterwards, for the report alone: it enters no gate and no choice.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from infra.registry.registry import Registry
from infra.scoring.model_file import ModelFile
from tasks.cells.cell_data import CellData, load_cells, tuned_cells
from tasks.cells.scoring import ScoredFile, score_cells
from tasks.champion.history import champion_lineage, history
from tasks.champion.in_force import registered_file
from tasks.context import Context
from tasks.judging.before_members import unseen
from tasks.judging.evidence import counts_digest, is_sealed, judged_digest, seal
from tasks.judging.ledger import take_look
from tasks.stage import stage
from validation.digest import digest
from validation.errors import ChampionUnusable, LedgerSpent, ModelFileInvalid, ObjectMissing
from validation.gate import GateResult, beats_on_tuning, could_pass, level_of_look
from validation.patients import FOLDS
from validation.records import Candidate, ChampionRef, Evaluation, Metrics, Pack, Split, Start, Verdict
from validation.statistics.metrics import METHOD_VERSION, compare, spreads, summarise

log = logging.getLogger(__name__)

Role = Literal["challenger", "champion", "reference", "other"]
ROLES: tuple[Role, ...] = get_args(Role)


def choose_challenger(candidates: Sequence[Candidate]) -> Candidate:
    """Return the best candidate on the tuning patients: by balanced accuracy, then log loss, then name."""

    def rank(candidate: Candidate) -> tuple[float, float, str]:
        metrics = candidate.tuning
        balanced = metrics.balanced_accuracy.value if metrics.balanced_accuracy else 0.0
        return -balanced, metrics.log_loss or 0.0, candidate.model

    return min(candidates, key=rank)


@dataclass(frozen=True)
class Rival:
    """A registered version that the challenger is compared with, and its file."""

    version: ChampionRef
    file: ModelFile


@dataclass(frozen=True)
class Contest:
    """Tonight's challenger and what it has to beat, before the look at the judging patients.

    ``tuning``: challenger and champion on the same cells of tuning patients. ``rivals``: the champion, and the fixed
    reference that small losses are measured against, unless that is the champion itself.
    """

    challenger: Candidate
    champion: ChampionRef | None = None
    rivals: Mapping[Literal["champion", "reference"], Rival] = field(default_factory=dict)
    tuning: Mapping[str, Metrics] = field(default_factory=dict)
    champion_problem: str = ""
    other: Candidate | None = None

    @property
    def worth_a_look(self) -> bool:
        """Whether the challenger beat the champion on tuning patients, or there is no champion."""
        if self.champion_problem:
            return False
        champion = self.tuning.get("champion")
        return champion is None or beats_on_tuning(self.tuning["challenger"], champion)


def prepare_contest(
    context: Context,
    candidates: Sequence[Candidate],
    start: Start,
    registry: Registry,
    split: Split,
    pack: Pack,
    problem: str = "",
) -> Contest:
    """Choose the challenger, and score the champion's registered file on the same tuning patients.

    A champion, or a reference, that no longer loads or scores becomes the contest's problem: it does not count as
    beaten. So does a ``problem`` that the night found at its beginning.
    """
    challenger = choose_challenger(candidates)
    rest = [candidate for candidate in candidates if candidate is not challenger]
    contest = partial(Contest, challenger, other=choose_challenger(rest) if rest else None)
    champion = registry.champion()
    if champion is not None and champion.candidate == challenger.id:
        # This night was killed after its promotion: it resumes against the champion it started with.
        champion = start.champion
    if champion is None:
        return contest(tuning={"challenger": challenger.tuning})
    if problem:
        return contest(champion, champion_problem=problem)
    try:
        rivals = _rivals(context, registry, champion)
        tuning = _on_tuning(context, challenger, rivals["champion"], load_cells(context, split, pack))
    except ModelFileInvalid as error:
        log.error("champion version %s cannot be used: %s", champion.version, error)
        return contest(champion, champion_problem=error.message)
    return contest(champion, rivals, tuning)


def _rivals(
    context: Context, registry: Registry, champion: ChampionRef
) -> dict[Literal["champion", "reference"], Rival]:
    rivals: dict[Literal["champion", "reference"], Rival] = {
        "champion": Rival(champion, ModelFile(registered_file(registry, champion)))
    }
    reference = reference_version(context, registry)
    if reference is not None and reference.version != champion.version:
        rivals["reference"] = Rival(reference, ModelFile(registered_file(registry, reference)))
    return rivals


def reference_version(context: Context, registry: Registry) -> ChampionRef | None:
    """Return the version that small losses are measured against: the settings', or the first of the champion's line.

    A champion from before there were members is no reference: too few patients could judge it.
    """
    if (named := context.settings.gate.reference) is not None:
        return registry.version(named)
    for number in champion_lineage(history(context)):
        version = registry.version(number)
        if context.records.find(Candidate, version.candidate) is not None:
            return version
    return None


def _on_tuning(context: Context, challenger: Candidate, champion: Rival, cells: CellData) -> dict[str, Metrics]:
    """Return the metrics of both on the tuning cells that both may be scored on."""
    tuning, members = tuned_cells(cells, challenger.folds)
    allowed = _judgeable(context, champion, tuning, members)
    if not allowed.any():
        return {"challenger": challenger.tuning}
    tuning, members = tuning.take(allowed), members[allowed]
    theirs = score_cells(context, champion.file, champion.version.threshold, tuning, members).scored
    if allowed.all():
        return {"challenger": challenger.tuning, "champion": summarise(theirs)}
    ours = score_cells(context, _file_of(context, challenger), challenger.threshold, tuning, members).scored
    return {
        "challenger": summarise(ours),
        "champion": summarise(theirs),
    }


def _judgeable(
    context: Context, rival: Rival, cells: CellData, members: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Return which cells a registered version may be scored on by ``members``, bool [n]."""
    if rival.file.folds:
        return np.isin(members, rival.file.folds)
    return unseen(context, rival.version.candidate, cells)


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
    stored = context.records.find(Evaluation, id_)
    # One that was placed there, or whose sealing was killed, is made again.
    if stored is not None and is_sealed(registry, stored):
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
        predictions=context.records.save_table(Evaluation, id_, "predictions", table),
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
    context.records.save(result, id_)
    seal(registry, result)
    return result


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
        cells = cells.take(_judgeable(context, rival, cells, cells.folds))
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
        "challenger": score_cells(context, _file_of(context, challenger), challenger.threshold, cells)
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
            return score_cells(context, _file_of(context, other), other.threshold, cells)
        log.warning("%s, the other CNN, lacks members and is not judged", other.model)
    except (ModelFileInvalid, ObjectMissing) as error:
        log.warning("%s, the other CNN, is not judged: %s", other.model, error.message)
    return None


def _file_of(context: Context, candidate: Candidate) -> ModelFile:
    return ModelFile(context.store.get(candidate.model_key), sha256_expected=candidate.model_sha256)


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
prepare_contest_task = stage(prepare_contest, name="choose challenger")
