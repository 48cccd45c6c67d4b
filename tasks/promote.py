"""Promote: the only stage that changes what the world sees.

History first: an entry is written, then the alias moves to it. A promotion that was killed anywhere is run again and
finds what it already did by its decision.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from infra.keys import OURS, history_key
from infra.registry import Registry
from tasks.context import Context
from tasks.stage import stage
from validation.errors import ChampionChanged
from validation.records import Candidate, ChampionRef, Decision, Promotion, Verdict

log = logging.getLogger(__name__)


def promote(context: Context, decision: Decision, challenger: Candidate, registry: Registry) -> ChampionRef | None:
    """Make the challenger champion if that is the verdict; return the champion as it is afterwards.

    Raises:
        ChampionChanged: when the champion is not the one that the challenger was compared with.
    """
    now = registry.champion()
    if decision.verdict is not Verdict.PROMOTED:
        return now
    if now is not None and now.candidate == challenger.id:
        return now  # a run that was killed after the alias had moved
    before = decision.champion_before
    if (now.version if now else None) != (before.version if before else None):
        raise ChampionChanged(
            f"the champion is version {now.version if now else 'none'}, "
            f"the challenger was compared with version {before.version if before else 'none'}",
            "run the night again: the challenger will be compared with the new champion",
        )
    reference = registry.register(challenger, context.store.get(challenger.model_key), decision)
    _note(context, decision, reference)
    registry.set_champion(reference.version)
    log.info("version %s (%s) is champion now", reference.version, challenger.spec.model)
    return reference


def history(context: Context) -> list[Promotion]:
    """Return all changes of the champion, oldest first."""
    keys = sorted(info.key for info in context.store.list(f"{OURS}history/") if info.key.endswith(".json"))
    return [Promotion.model_validate_json(context.store.get(key)) for key in keys]


def _note(context: Context, decision: Decision, reference: ChampionRef) -> None:
    entries = history(context)
    if any(entry.decision == decision.id for entry in entries):
        return
    entry = Promotion(
        number=len(entries) + 1,
        decision=decision.id,
        version_before=decision.champion_before.version if decision.champion_before else None,
        version_after=reference.version,
        why=decision.sentence,
        at=datetime.now(UTC),
    )
    if not context.store.create(history_key(entry.number), entry.model_dump_json(indent=2).encode()):
        raise ChampionChanged("another promotion was recorded at the same moment", "run the night again")


promote_task = stage(promote)
