"""Evaluate: which CNN challenges is chosen on validation patients; then challenger and champion score the same holdout.

The holdout answers one question a night. A look at it is written into the ledger before its result is known, so a
night that is killed in between has spent it all the same, and looks at the same challenger again for nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pandas as pd

from infra.keys import OURS, look_key
from infra.registry import Registry
from infra.scoring import ModelFile
from tasks.context import Context
from tasks.holdings import SideData, load_side
from tasks.stage import stage
from validation.digest import digest
from validation.errors import LedgerSpent
from validation.gate import beats_on_validation, level_of_look
from validation.metrics import METHOD_VERSION, Scored, compare, summarise
from validation.records import Candidate, ChampionRef, Evaluation, Look, Metrics, Pack, Split, Start

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

    @property
    def worth_a_look(self) -> bool:
        """Whether the challenger beat the champion on validation, or there is none to beat."""
        if self.champion_on_validation is None:
            return True
        return beats_on_validation(self.challenger.validation, self.champion_on_validation)


def prepare_contest(
    context: Context, candidates: Sequence[Candidate], start: Start, registry: Registry, split: Split, pack: Pack
) -> Contest:
    """Choose the challenger, and score the champion, from its registered file, on tonight's validation patients."""
    challenger = choose_challenger(candidates)
    champion = registry.champion()
    if champion is not None and champion.candidate == challenger.id:
        # This very night was killed after its promotion: it goes on against whom it began with.
        champion = start.champion
    if champion is None:
        return Contest(challenger, None, None, None)
    model = registry.model_bytes(champion)
    side = load_side(context, split, pack, "validation")
    scored = _score(model, champion.model_sha256, champion.threshold, _at_side(context, side, model, pack))
    return Contest(challenger, champion, model, summarise(scored, resamples=context.settings.gate.resamples))


def evaluate(context: Context, contest: Contest, split: Split, pack: Pack) -> Evaluation:
    """Score challenger and champion on the same holdout bytes.

    Raises:
        LedgerSpent: when this generation's looks are used up.
    """
    holdout = load_side(context, split, pack, "holdout")
    rules = context.settings.gate
    champion_id = contest.champion.candidate if contest.champion else None
    look = take_look(context, split.generation, contest.challenger.id, champion_id)
    id_ = digest(
        split.id,
        holdout.digest,
        contest.challenger.id,
        contest.challenger.model_sha256,
        contest.champion.model_dump(exclude={"since"}) if contest.champion else None,
        rules.model_dump(),
        METHOD_VERSION,
    )
    if (stored := context.records.find(Evaluation, id_)) is not None:
        return stored
    new = _score(
        context.store.get(contest.challenger.model_key),
        contest.challenger.model_sha256,
        contest.challenger.threshold,
        holdout,
    )
    old = None
    if contest.champion and contest.champion_model:
        at_side = _at_side(context, holdout, contest.champion_model, pack)
        old = _score(contest.champion_model, contest.champion.model_sha256, contest.champion.threshold, at_side)
    level = level_of_look(rules)
    result = Evaluation(
        id=id_,
        split=split.id,
        challenger=contest.challenger.id,
        champion=contest.champion,
        look=look,
        predictions=context.records.save_table(Evaluation, id_, "predictions", _table(holdout, new, old)),
        challenger_metrics=summarise(new, resamples=rules.resamples),
        champion_metrics=summarise(old, resamples=rules.resamples) if old else None,
        differences=compare(new, old, resamples=rules.resamples, level=level) if old else {},
    )
    context.records.save(result, id_)
    return result


def take_look(context: Context, generation: str, challenger: str, champion: str | None) -> Look:
    """Enter a look into the ledger and return it; the same challenger against the same champion looks once.

    A first champion is compared with nobody: its look is recorded and spends nothing.

    Raises:
        LedgerSpent: when all looks of this generation have been taken.
    """
    looks = [
        Look.model_validate_json(context.store.get(info.key))
        for info in context.store.list(f"{OURS}looks/{generation}/")
        if info.key.endswith(".json")
    ]
    for look in looks:
        if (look.challenger, look.champion) == (challenger, champion):
            return look
    rules = context.settings.gate
    spending = sum(look.spent > 0 for look in looks)
    if champion is not None and spending >= rules.looks:
        raise LedgerSpent(
            f"the holdout of generation {generation} has been looked at {spending} times, {rules.looks} are allowed",
            "begin a new generation (split.generation), or let a person decide",
        )
    number = max((look.number for look in looks), default=0) + 1
    look = Look(
        generation=generation,
        number=number,
        challenger=challenger,
        champion=champion,
        spent=level_of_look(rules) if champion is not None else 0.0,
        looked_at=datetime.now(UTC),
    )
    if not context.store.create(look_key(generation, number), look.model_dump_json(indent=2).encode()):
        return take_look(context, generation, challenger, champion)  # somebody else took this number
    return look


def _score(model: bytes, sha256: str, threshold: float, side: SideData) -> Scored:
    probabilities = ModelFile(model, sha256_expected=sha256).score(side.images).astype(np.float64)
    return side.scored(probabilities, threshold)


def _at_side(context: Context, side: SideData, model: bytes, pack: Pack) -> SideData:
    """Return the same cells at the size that a model was trained at; they differ once the setting was changed."""
    from dataclasses import replace

    from tasks.pull import read_object
    from validation.images import decode, to_square
    from validation.refusals import SafeLimits

    size = ModelFile(model).side
    if size == pack.side:
        return side
    limits = SafeLimits(context.settings.data.max_pixels)  # what is accepted was judged already
    images = np.zeros((len(side.keys), size, size, 3), np.uint8)
    for index, (key, sha256) in enumerate(zip(side.keys, side.sha256, strict=True)):
        images[index] = to_square(decode(read_object(context, key, sha256), limits), size)
    return replace(side, images=images)


def _table(holdout: SideData, new: Scored, old: Scored | None) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "key": holdout.keys,
            "sha256": holdout.sha256,
            "patient": holdout.patients,
            "label": holdout.labels.astype(int),
            "challenger": new.probabilities,
            "champion": old.probabilities if old else np.full(len(holdout.keys), np.nan),
        }
    )


evaluate_task = stage(evaluate)
prepare_contest_task = stage(prepare_contest, name="choose challenger")
