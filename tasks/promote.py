"""Promote: the only stage that changes the champion.

The challenger is registered, downloaded again, tried in a clean process and entered in the history; only then the alias
moves. A promotion that was killed anywhere is run again, and finds by its decision what it already did.
"""

from __future__ import annotations

import logging

from infra.registry.registry import Registry
from infra.store.keys import CANDIDATE_ASSET, CHAMPION_ASSET
from tasks.champion.approval import request_approval, waits_for_person
from tasks.champion.history import ChampionChange, append_change, reconcile_champion, refuse_changed, was_promoted
from tasks.champion.reproduce import reproduce
from tasks.context import Context
from tasks.judging.evidence import verify_sealed
from tasks.judging.verdict import verdict_of
from tasks.models import model_names
from tasks.reporting.model_card import model_card
from tasks.stage import stage
from validation.errors import NotReproduced, ObjectMissing
from validation.records import Candidate, ChampionRef, Decision, Evaluation, Verdict

log = logging.getLogger(__name__)

HINT = "the champion stays; run the night again, or promote it by hand: `retrain promote DECISION --why ...`"


def promote(
    context: Context, decision: Decision, challenger: Candidate, registry: Registry, who: str = "the nightly run"
) -> ChampionRef | None:
    """Make the challenger champion if that is the verdict; return the champion afterwards.

    An evaluation promotes once: not again after a rollback, whichever decision rests on it.

    Raises:
        ChampionChanged: when the champion is not the one that the challenger was compared with.
        ModelFileInvalid, NotReproduced: when the model file is not the judged one; the champion stays.
    """
    with context.workspace.champion_lock():
        now = reconcile_champion(context, registry)
        by_person = decision.verdict is Verdict.PROMOTED and waits_for_person(context.settings)
        if decision.verdict is Verdict.AWAITING_APPROVAL or by_person:
            # Also where the record says `promoted`: it lies in the bucket, the setting does not.
            request_approval(context, decision)
            return now
        if decision.verdict is not Verdict.PROMOTED or was_promoted(context, decision.id, decision.evaluation):
            return now
        before = decision.champion_before
        refuse_changed(now.version if now else None, before.version if before else None)
        reference, checked, evaluation = register_and_try(context, registry, decision, challenger)
        change = ChampionChange("promoted", who, decision.id, now, reference, decision.sentence, checked, evaluation)
        return append_change(context, registry, change)


def register_and_try(
    context: Context, registry: Registry, decision: Decision, challenger: Candidate, *, strict: bool = True
) -> tuple[ChampionRef, str, Evaluation | None]:
    """Register a challenger; return its version, the result of trying its file, and its evaluation. The champion stays.

    ``strict``: what the decision says is not believed: the evaluation must be the one that was made, and judged again
    it must come to a promotion. A person who overrules the gate needs neither.

    Raises:
        ObjectMissing: when the model file was pruned.
        ModelFileInvalid, NotReproduced: when the model file is not the judged one, or the evidence not what was made.
    """
    evaluation = context.records.find(Evaluation, decision.evaluation) if decision.evaluation else None
    if strict:
        _refuse_other_evidence(context, registry, decision, challenger, evaluation)
    elif evaluation is not None:
        # A person may overrule the gate, not promote what was changed since.
        _refuse_changed_evidence(registry, decision, challenger, evaluation, required=False)
    try:
        model = context.store.get(challenger.model_key)
    except ObjectMissing as error:
        rules = context.settings.prune
        raise ObjectMissing(
            f"the model file of candidate {challenger.id} is not in {context.store.uri} any more",
            f"files of challengers that were never registered are removed after {rules.models_days:g} days and "
            f"{rules.models_nights} nights (prune.models_days, prune.models_nights); run a night to train again",
        ) from error
    card = model_card(challenger, decision, evaluation, context.settings.printable())
    reference = registry.register(challenger, model, decision, evaluation, card)
    return reference, reproduce(context, registry, reference, decision, strict=strict), evaluation


def _refuse_other_evidence(
    context: Context, registry: Registry, decision: Decision, challenger: Candidate, evaluation: Evaluation | None
) -> None:
    """Raise NotReproduced unless a sealed evaluation of this very file and threshold comes to a promotion."""
    if evaluation is None:
        raise NotReproduced(f"decision {decision.id} says {decision.verdict.value} and rests on no evaluation", HINT)
    _refuse_changed_evidence(registry, decision, challenger, evaluation, required=True)
    verdict = verdict_of(evaluation, context.settings.gate).verdict
    if verdict is not Verdict.PROMOTED:
        raise NotReproduced(
            f"decision {decision.id} says {decision.verdict.value}; evaluation {evaluation.id}, judged again, comes to "
            f"{verdict.value}",
            HINT,
        )


def _refuse_changed_evidence(
    registry: Registry, decision: Decision, challenger: Candidate, evaluation: Evaluation, *, required: bool
) -> None:
    """Raise NotReproduced when evaluation, candidate and decision contradict each other or the registry's seal."""
    verify_sealed(registry, evaluation, required=required)
    judged = evaluation.challenger, evaluation.challenger_sha256, evaluation.challenger_threshold
    if judged != (challenger.id, challenger.model_sha256, challenger.threshold):
        raise NotReproduced(
            f"candidate {challenger.id} (SHA-256 {challenger.model_sha256}, threshold {challenger.threshold!r}) is not "
            f"what evaluation {evaluation.id} judged: {judged[0]} (SHA-256 {judged[1]}, threshold {judged[2]!r})",
            HINT,
        )
    compared, against = decision.champion_before, evaluation.champion
    if (compared and compared.version) != (against and against.version):
        raise NotReproduced(f"decision {decision.id} and its evaluation {evaluation.id} name different champions", HINT)


promote_task = stage(promote)
# For a decision that says so: only then is the champion another one afterwards.
crown_task = stage(promote, makes=CHAMPION_ASSET, of=[CANDIDATE_ASSET + model for model in model_names()])
