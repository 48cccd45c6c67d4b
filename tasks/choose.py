"""Choose: tonight's challenger, on tuning patients, and whether it is worth a look at the judging ones."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt

from infra.registry.registry import Registry
from infra.scoring.model_file import ModelFile
from tasks.cells.cell_data import CellData, load_cells, tuned_cells
from tasks.cells.scoring import score_cells
from tasks.champion.history import champion_lineage, history
from tasks.champion.in_force import champion_problem, registered_file
from tasks.context import Context
from tasks.judging.before_members import unseen
from tasks.stage import stage
from validation.errors import ModelFileInvalid, RetrainError, Unreachable
from validation.gate import beats_on_tuning
from validation.records import Candidate, ChampionRef, Metrics, Pack, Split, Start
from validation.statistics.metrics import summarise

log = logging.getLogger(__name__)


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
    elif (champion and champion.version) != (start.champion and start.champion.version):
        # Changed since this night began: what was found then was about another.
        problem = champion_problem(context, registry)
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
        try:
            found = context.records.find(Candidate, version.candidate, strict=True) is not None
        except Unreachable:
            raise
        except RetrainError:
            found = True  # damaged: the reference must not move on because of it
        if found:
            return version
    return None


def _on_tuning(context: Context, challenger: Candidate, champion: Rival, cells: CellData) -> dict[str, Metrics]:
    """Return the metrics of both on the tuning cells that both may be scored on."""
    tuning, members = tuned_cells(cells, challenger.folds)
    allowed = judgeable(context, champion, tuning, members)
    if not allowed.any():
        return {"challenger": challenger.tuning}
    tuning, members = tuning.take(allowed), members[allowed]
    theirs = score_cells(context, champion.file, champion.version.threshold, tuning, members).scored
    if allowed.all():
        return {"challenger": challenger.tuning, "champion": summarise(theirs)}
    ours = score_cells(context, candidate_file(context, challenger), challenger.threshold, tuning, members).scored
    return {
        "challenger": summarise(ours),
        "champion": summarise(theirs),
    }


def judgeable(context: Context, rival: Rival, cells: CellData, members: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return which cells a registered version may be scored on by ``members``, bool [n]."""
    if rival.file.folds:
        return np.isin(members, rival.file.folds)
    return unseen(context, rival.version.candidate, cells)


def candidate_file(context: Context, candidate: Candidate) -> ModelFile:
    """Return a candidate's file; raises ModelFileInvalid when it is not the recorded one."""
    return ModelFile(context.store.get(candidate.model_key), sha256_expected=candidate.model_sha256)


prepare_contest_task = stage(prepare_contest, name="choose challenger")
