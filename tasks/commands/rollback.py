"""Changes of the champion by hand: rollback to an earlier version, override of the gate's decision.

Both are new entries in the history, with author and reason; no decision is rewritten.
"""

from __future__ import annotations

import logging

from infra.registry.registry import Registry
from tasks.champion.approval import open_request
from tasks.champion.history import (
    ChampionChange,
    append_change,
    champion_lineage,
    checked_why,
    described,
    history,
    reconcile_champion,
    refuse_done,
    untouched_history,
)
from tasks.champion.in_force import refuse_changed_since
from tasks.champion.reproduce import reproduce
from tasks.context import Context
from tasks.nights import challenger_of
from tasks.promote import register_and_try
from validation.errors import ChampionUnusable, UsageError
from validation.records import ChampionRef, Decision

log = logging.getLogger(__name__)


def rollback(context: Context, registry: Registry, version: str | None, *, why: str, who: str) -> ChampionRef:
    """Make an earlier champion champion again: ``version``, by default the champion before this one.

    A second rollback goes one champion further back, never to the one that was rolled back.

    Raises:
        UsageError: when there is no such champion.
        ModelFileInvalid, NotReproduced: when that version's file is not what was registered; the champion stays.
    """
    why, seen = checked_why(why), len(history(context))
    with context.workspace.champion_lock():
        gone, found = None, ""
        try:
            now = reconcile_champion(context, registry)
        except ChampionUnusable as error:
            now, found = None, error.message
            log.error("rolled back all the same: %s", found)
        entries = untouched_history(context, registry)
        refuse_done(entries, seen)
        if found:
            gone = entries[-1].version_after
        if version is None:
            lineage = champion_lineage(entries)
            if len(lineage) < 2:
                raise UsageError("there is no champion before this one", "`retrain history` shows who was champion")
            version = lineage[-2]
        elif version not in {name for entry in entries for name in (entry.version_before, entry.version_after)}:
            raise UsageError(
                f"version {version} was never champion", "`retrain promote DECISION --why ...` makes a challenger one"
            )
        if version == (now.version if now else gone):
            raise UsageError(
                f"version {version} is champion already: {described(entries[-1])}",
                "`retrain history` shows the earlier champions",
            )
        target = registry.version(version)
        refuse_changed_since(context, target, entries)
        decision = registry.decision_of(version) or ""
        record = context.records.find(Decision, decision) if decision else None
        checked = "; ".join(filter(None, (reproduce(context, registry, target, record, strict=False), found)))
        return append_change(
            context, registry, ChampionChange("rollback", who, decision, now, target, why, checked, gone=gone)
        )


def override(context: Context, registry: Registry, decision: Decision, *, why: str, who: str) -> ChampionRef:
    """Make a decision's challenger champion, whatever the verdict; recorded as an override.

    Raises:
        UsageError: when the decision has no challenger, is champion already, or waits for an approval.
        ModelFileInvalid, NotReproduced: when the model file is not the one that was judged; the champion stays.
    """
    why = checked_why(why)
    challenger = challenger_of(context, decision)
    seen = len(history(context))
    with context.workspace.champion_lock():
        now = reconcile_champion(context, registry)
        entries = history(context)
        refuse_done(entries, seen)
        if open_request(context, decision.id) is not None:
            raise UsageError(
                f"decision {decision.id} waits for an approval", f"`retrain approve {decision.id} --why ...`"
            )
        compared = decision.champion_before.version if decision.champion_before else None
        if now is not None and now.version != compared:
            log.warning("the challenger was compared with version %s, the champion is %s", compared, now.version)
        if now is not None and now.candidate == challenger.id:
            raise UsageError(f"the challenger is champion already: {described(entries[-1])}", "see `retrain history`")
        reference, checked, _ = register_and_try(context, registry, decision, challenger, strict=False)
        return append_change(
            context, registry, ChampionChange("override", who, decision.id, now, reference, why, checked)
        )
