"""Evaluate: which CNN challenges is chosen on validation patients; then challenger and champion score the same holdout.

The holdout answers one question a night. A look at it is written into the ledger before its result is known, so a
night that is killed in between has spent it all the same, and looks at the same challenger again for nothing. The CNN
that did not challenge is scored after that for the report alone: it enters no gate and no choice.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

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
from validation.records import Candidate, ChampionRef, Evaluation, Look, Metrics, Pack, Split, Start
from validation.statistics.metrics import METHOD_VERSION, compare, spreads, summarise

log = logging.getLogger(__name__)


def choose_challenger(candidates: Sequence[Candidate]) -> Candidate:
    """Return the better candidate on the validation patients: by balanced accuracy, then by log loss, then by name."""

    def rank(candidate: Candidate) -> tuple[float, float, str]:
        metrics = candidate.validation
        balanced = metrics.balanced_accuracy.value if metrics.balanced_accuracy else 0.0
        return -balanced, metrics.log_loss or 0.0, candidate.spec.model

    return min(candidates, key=rank)


@dataclass(frozen=True)
class Contest:
    """Tonight's challenger and whom it challenges, before anybody looks at the holdout."""

    challenger: Candidate
    champion: ChampionRef | None
    champion_model: bytes | None
    champion_on_validation: Metrics | None
    champion_problem: str = ""
    other: Candidate | None = None

    @property
    def worth_a_look(self) -> bool:
        """Whether the challenger beat the champion on validation, or there is none to beat."""
        if self.champion_problem:
            return False
        if self.champion_on_validation is None:
            return True
        return beats_on_validation(self.challenger.validation, self.champion_on_validation)


def prepare_contest(
    context: Context, candidates: Sequence[Candidate], start: Start, registry: Registry, split: Split, pack: Pack
) -> Contest:
    """Choose the challenger, and score the champion, from its registered file, on tonight's validation patients.

    A champion that no longer loads or scores is told as the contest's problem: it does not count as beaten.
    """
    challenger = choose_challenger(candidates)
    rest = [candidate for candidate in candidates if candidate is not challenger]
    other = choose_challenger(rest) if rest else None
    champion = registry.champion()
    if champion is not None and champion.candidate == challenger.id:
        # This very night was killed after its promotion: it goes on against whom it began with.
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
    """Score challenger and champion on the same holdout bytes; after them, for the report alone, the other CNN.

    Raises:
        LedgerSpent: when this generation's looks are used up.
        ChampionUnusable: when the champion, which scored the validation patients, does not score the holdout.
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
    scores = {}
    if champion and contest.champion_model:
        try:
            scores["champion"] = _score(context, contest.champion_model, champion, holdout)
        except ModelFileInvalid as error:
            raise ChampionUnusable(f"version {champion.version}: {error.message}", error.hint) from error
    scores["challenger"] = _score(context, context.store.get(challenger.model_key), challenger, holdout)
    if other and (scored := _score_other(context, other, holdout)) is not None:
        scores["other"] = scored
    result = _evaluation(context, (id_, split.id), contest, look, holdout, scores)
    context.records.save(result, id_)
    return result


def _evaluation(
    context: Context,
    ids: tuple[str, str],
    contest: Contest,
    look: Look,
    holdout: SideData,
    scores: dict[str, ScoredFile],
) -> Evaluation:
    id_, split = ids
    rules = context.settings.gate
    new = scores["challenger"].scored
    old = scores["champion"].scored if "champion" in scores else None
    other = scores["other"].scored if "other" in scores else None
    return Evaluation(
        id=id_,
        split=split,
        challenger=contest.challenger.id,
        champion=contest.champion,
        look=look,
        predictions=context.records.save_table(Evaluation, id_, "predictions", _table(holdout, scores)),
        challenger_metrics=summarise(new, resamples=rules.resamples),
        champion_metrics=summarise(old, resamples=rules.resamples) if old else None,
        differences=compare(new, old, resamples=rules.resamples, level=level_of_look(rules)) if old else {},
        spreads=spreads(new, old) if old else {},
        other=contest.other.id if contest.other and other else None,
        other_metrics=summarise(other, resamples=rules.resamples) if other else None,
        milliseconds={name: round(scored.milliseconds, 4) for name, scored in scores.items()},
    )


def _champion_file(registry: Registry, champion: ChampionRef) -> bytes:
    """Return the champion's registered file.

    Raises:
        ModelFileInvalid: when the registry answers and the file is damaged or not there.
        RegistryUnreachable: when the registry does not answer.
    """
    try:
        return registry.model_bytes(champion)
    except RegistryUnreachable as error:
        registry.champion()  # raises again when it is the registry that is away
        raise ModelFileInvalid(f"its registered file cannot be fetched: {error.message}", error.hint) from error


def _score(context: Context, model: bytes, known: Candidate | ChampionRef, side: SideData) -> ScoredFile:
    return score_side(context, model, known.model_sha256, known.threshold, side)


def _score_other(context: Context, other: Candidate, holdout: SideData) -> ScoredFile | None:
    """Score the CNN that did not challenge; a report without it is better than no night."""
    try:
        return _score(context, context.store.get(other.model_key), other, holdout)
    except (ModelFileInvalid, ObjectMissing) as error:
        log.warning("%s, which did not challenge, is not scored on the holdout: %s", other.spec.model, error.message)
        return None


def _table(holdout: SideData, scores: dict[str, ScoredFile]) -> pd.DataFrame:
    """One row a cell; NaN where there is no such model."""
    nothing = np.full(len(holdout.keys), np.nan)
    return pd.DataFrame(
        {
            "key": holdout.keys,
            "sha256": holdout.sha256,
            "patient": holdout.patients,
            "label": holdout.labels.astype(int),
            **{
                name: scores[name].scored.probabilities if name in scores else nothing
                for name in ("challenger", "champion", "other")
            },
        }
    )


evaluate_task = stage(evaluate)
prepare_contest_task = stage(prepare_contest, name="choose challenger")
