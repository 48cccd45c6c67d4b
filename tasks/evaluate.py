"""Evaluate: the challenger is chosen on validation patients; then challenger and champion score the same holdout.

The holdout answers one question a night. A look is written into the ledger before its result is known, so a night that
is killed in between has spent it, and repeats it at no further cost. The other CNN is scored afterwards, for the report
alone: it enters no gate and no choice.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from infra.registry.registry import Registry
from tasks.cells.scoring import ScoredFile, score_side
from tasks.cells.side_data import SideData, load_side
from tasks.context import Context
from tasks.judging.ledger import take_look
from tasks.stage import stage
from validation.digest import digest
from validation.errors import ChampionUnusable, ModelFileInvalid, ObjectMissing, RegistryUnreachable
from validation.gate import beats_on_validation, level_of_look
from validation.records import Candidate, ChampionRef, Evaluation, Metrics, Pack, Split, Start
from validation.statistics.metrics import METHOD_VERSION, compare, spreads, summarise

log = logging.getLogger(__name__)

Role = Literal["challenger", "champion", "other"]
ROLES: tuple[Role, ...] = get_args(Role)


def choose_challenger(candidates: Sequence[Candidate]) -> Candidate:
    """Return the best candidate on the validation patients: by balanced accuracy, then log loss, then name."""

    def rank(candidate: Candidate) -> tuple[float, float, str]:
        metrics = candidate.validation
        balanced = metrics.balanced_accuracy.value if metrics.balanced_accuracy else 0.0
        return -balanced, metrics.log_loss or 0.0, candidate.spec.model

    return min(candidates, key=rank)


@dataclass(frozen=True)
class Contest:
    """Tonight's challenger and the champion, before the look at the holdout."""

    challenger: Candidate
    champion: ChampionRef | None
    champion_model: bytes | None
    champion_on_validation: Metrics | None
    champion_problem: str = ""
    other: Candidate | None = None

    @property
    def worth_a_look(self) -> bool:
        """Whether the challenger beat the champion on validation, or there is no champion."""
        if self.champion_problem:
            return False
        champion = self.champion_on_validation
        return champion is None or beats_on_validation(self.challenger.validation, champion)


def prepare_contest(
    context: Context, candidates: Sequence[Candidate], start: Start, registry: Registry, split: Split, pack: Pack
) -> Contest:
    """Choose the challenger, and score the champion's registered file on tonight's validation patients.

    A champion that no longer loads or scores becomes the contest's problem: it does not count as beaten.
    """
    challenger = choose_challenger(candidates)
    rest = [candidate for candidate in candidates if candidate is not challenger]
    other = choose_challenger(rest) if rest else None
    champion = registry.champion()
    if champion is not None and champion.candidate == challenger.id:
        # This night was killed after its promotion: it resumes against the champion it started with.
        champion = start.champion
    if champion is None:
        return Contest(challenger, None, None, None, other=other)
    side = load_side(context, split, pack, "validation")
    try:
        model = _champion_file(registry, champion)
        scored = _score(context, model, champion, side)
    except ModelFileInvalid as error:
        log.error("champion version %s cannot be used: %s", champion.version, error)
        return Contest(challenger, champion, None, None, champion_problem=error.message, other=other)
    summary = summarise(scored.scored, resamples=context.settings.gate.resamples)
    return Contest(challenger, champion, model, summary, other=other)


def evaluate(context: Context, contest: Contest, split: Split, pack: Pack) -> Evaluation:
    """Score challenger and champion on the same holdout bytes; then, for the report alone, the other CNN.

    Raises:
        LedgerSpent: when this generation's looks are used up.
        ChampionUnusable: when the champion scored the validation patients and cannot score the holdout.
    """
    holdout = load_side(context, split, pack, "holdout")
    challenger, champion, other = contest.challenger, contest.champion, contest.other
    look = take_look(context, split.generation, challenger.id, champion.candidate if champion else None)
    id_ = digest(
        split.id,
        holdout.digest,
        challenger.id,
        challenger.model_sha256,
        champion.model_dump(exclude={"since"}) if champion else None,
        other.id if other else None,
        context.settings.gate.model_dump(),
        METHOD_VERSION,
    )
    if (stored := context.records.find(Evaluation, id_)) is not None:
        return stored
    scores: dict[Role, ScoredFile] = {}
    if champion and contest.champion_model:
        try:
            scores["champion"] = _score(context, contest.champion_model, champion, holdout)
        except ModelFileInvalid as error:
            raise ChampionUnusable(f"version {champion.version}: {error.message}", error.hint) from error
    scores["challenger"] = _score(context, context.store.get(challenger.model_key), challenger, holdout)
    if other:
        try:
            scores["other"] = _score(context, context.store.get(other.model_key), other, holdout)
        except (ModelFileInvalid, ObjectMissing) as error:  # a report without it is better than no night
            log.warning("%s, the other CNN, is not scored on the holdout: %s", other.spec.model, error.message)
    rules = context.settings.gate
    metrics = {role: summarise(scored.scored, resamples=rules.resamples) for role, scored in scores.items()}
    new, old = scores["challenger"].scored, scores["champion"].scored if "champion" in scores else None
    result = Evaluation(
        id=id_,
        split=split.id,
        challenger=challenger.id,
        champion=champion,
        look=look,
        predictions=context.records.save_table(Evaluation, id_, "predictions", _table(holdout, scores)),
        challenger_metrics=metrics["challenger"],
        champion_metrics=metrics.get("champion"),
        differences=compare(new, old, resamples=rules.resamples, level=level_of_look(rules)) if old else {},
        spreads=spreads(new, old) if old else {},
        other=other.id if other and "other" in scores else None,
        other_metrics=metrics.get("other"),
        milliseconds={role: round(scored.milliseconds, 4) for role, scored in scores.items()},
    )
    context.records.save(result, id_)
    return result


def _champion_file(registry: Registry, champion: ChampionRef) -> bytes:
    """Return the champion's registered file.

    Raises:
        ModelFileInvalid: when the registry answers and the file is damaged or missing.
        RegistryUnreachable: when the registry does not answer.
    """
    try:
        return registry.model_bytes(champion)
    except RegistryUnreachable as error:
        registry.champion()  # raises again when the registry itself does not answer
        raise ModelFileInvalid(f"its registered file cannot be fetched: {error.message}", error.hint) from error


def _score(context: Context, model: bytes, known: Candidate | ChampionRef, side: SideData) -> ScoredFile:
    return score_side(context, model, known.model_sha256, known.threshold, side)


def _table(holdout: SideData, scores: Mapping[Role, ScoredFile]) -> pd.DataFrame:
    """Return one row for each cell, with NaN for a model that was not scored."""
    unscored = np.full(len(holdout.keys), np.nan)
    probabilities: dict[str, Any] = {
        role: scores[role].scored.probabilities if role in scores else unscored for role in ROLES
    }
    return pd.DataFrame(
        {
            "key": holdout.keys,
            "sha256": holdout.sha256,
            "patient": holdout.patients,
            "label": holdout.labels.astype(int),
            **probabilities,
        }
    )


evaluate_task = stage(evaluate)
prepare_contest_task = stage(prepare_contest, name="choose challenger")
