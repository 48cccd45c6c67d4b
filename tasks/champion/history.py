"""History: every change of the champion, in entries that are only ever added; the champion follows from them.

An entry is decided by one write into the registry of which exactly one can win (``Registry.put_if_absent``); the
store's copy and MLflow's alias follow from it, and ``reconcile_champion`` repairs them where a process was killed in
between.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from infra.registry.registry import Registry
from infra.store.keys import OURS, history_key, record_key
from tasks.context import Context
from validation.errors import ChampionChanged, ObjectMissing, RetrainError, UsageError
from validation.records import ApprovalAnswer, ChampionRef, Promotion
from validation.redaction import mask

log = logging.getLogger(__name__)

ENTRY, ANSWER = "history.", "answer."
LONGEST_WHY = 1_000


@dataclass(frozen=True)
class ChampionChange:
    """A change of the champion that is about to be made: ``before`` is who it was compared with, or seen as."""

    action: Literal["promoted", "approved", "override", "rollback"]
    who: str
    decision: str
    before: ChampionRef | None
    after: ChampionRef
    why: str
    checked: str


def history(context: Context) -> list[Promotion]:
    """Return all changes of the champion, oldest first.

    Raises:
        RetrainError: when an entry is damaged or missing; its key is named.
    """
    ids = [id_ for id_ in context.records.ids(Promotion) if id_.isdigit()]
    for number, id_ in enumerate(ids, start=1):
        if int(id_) != number:
            raise ObjectMissing(
                f"the history in {context.store.uri} has no entry {history_key(number)}, but later ones",
                "the registry has it too: the next night, or any command that changes the champion, writes it again",
            )
    entries = []
    for id_ in ids:
        try:
            entries.append(context.records.load(Promotion, id_))
        except ObjectMissing:
            raise
        except RetrainError as error:
            raise RetrainError(
                error.message,
                f"{error.hint}; the registry has this entry too: move {record_key(Promotion.kind, id_)} away, and the "
                "next night, or any command that changes the champion, writes it again",
            ) from error
    return entries


def reconcile_champion(context: Context, registry: Registry) -> ChampionRef | None:
    """Finish what a killed process has begun, and return the champion, which store and alias then agree on.

    Entries and answers that were decided in the registry get their copy in the store; the alias goes to where the
    history ends. It is looked at again after it was moved, so that of several processes the last one leaves it right.

    Raises:
        RetrainError: when the history names a version that the registry has not.
    """
    while True:
        _copy(context, registry)
        entries, now = _untouched(context, registry), registry.champion()
        if not entries or (now is not None and now.version == entries[-1].version_after):
            return now
        version = entries[-1].version_after
        _refuse_other_registry(registry, entries[-1])
        # Once in every change; a second time only when somebody was killed, or moved the alias by hand.
        log.info("the alias goes from version %s to %s, where the history ends", now.version if now else None, version)
        registry.set_champion(version)


def append_change(context: Context, registry: Registry, change: ChampionChange) -> ChampionRef:
    """Make a change of the champion: decide its entry, then let store and alias follow.

    Raises:
        ChampionChanged: when the champion is not ``change.before`` any more, or another change was decided first.
    """
    entries = history(context)
    before = change.before.version if change.before else None
    refuse_changed(entries[-1].version_after if entries else before, before)
    number = len(entries) + 1
    now = datetime.now(UTC)
    entry = Promotion(
        number=number,
        action=change.action,
        who=change.who,
        decision=change.decision,
        version_before=before,
        version_after=change.after.version,
        why=change.why[:LONGEST_WHY],
        checked=change.checked[:LONGEST_WHY],
        # Another machine's clock may be ahead: the history never runs backwards.
        at=max(now, entries[-1].at) if entries else now,
    )
    text = entry.model_dump_json(indent=2)
    stands = registry.put_if_absent(f"{ENTRY}{number:06d}", text)
    reconcile_champion(context, registry)
    if stands != text:
        winner = Promotion.model_validate_json(stands)
        if (winner.decision, winner.version_after) != (entry.decision, entry.version_after):
            refuse_changed(winner.version_after, before, f" ({winner.who}, {winner.at:%Y-%m-%d %H:%M:%S} UTC)")
    log.info("version %s (%s) is champion now", change.after.version, change.after.model)
    return change.after


def refuse_changed(now: str | None, compared: str | None, by: str = "") -> None:
    """Raise ChampionChanged unless the champion is still the version that the challenger was compared with."""
    if now != compared:
        raise ChampionChanged(
            f"the champion has changed since it was evaluated: it is version {now or 'none'}{by}, "
            f"the challenger was compared with version {compared or 'none'}",
            "run the night again: the challenger will be compared with the new champion",
        )


def champion_at(entries: Sequence[Promotion], moment: datetime) -> Promotion:
    """Return the entry that made the champion of a moment.

    Raises:
        UsageError: when there was none yet.
    """
    until = [entry for entry in entries if entry.at <= moment]
    if not until:
        first = f"the first became champion at {entries[0].at:%Y-%m-%d %H:%M:%S} UTC" if entries else "there never was"
        raise UsageError(f"no champion at {moment:%Y-%m-%d %H:%M:%S} UTC: {first}", "`retrain history` shows them all")
    return until[-1]


def champion_lineage(entries: Sequence[Promotion]) -> list[str]:
    """Return the versions that led to today's champion, oldest first; one that was rolled back is not among them."""
    line: list[str] = []
    for entry in entries:
        if not line and entry.version_before is not None:
            line.append(entry.version_before)
        if entry.action == "rollback" and entry.version_after in line:
            del line[line.index(entry.version_after) + 1 :]
        else:
            line.append(entry.version_after)
    return line


def was_promoted(context: Context, decision: str) -> bool:
    """Whether a decision has made its challenger champion once, whatever came later."""
    return any(entry.decision == decision and entry.action != "rollback" for entry in history(context))


def checked_why(why: str) -> str:
    """Return a person's reason; raises UsageError when there is none, or too much of it."""
    if not why.strip():
        raise UsageError("a reason is needed", "say why: --why 'what you saw, and where'")
    if len(why) > LONGEST_WHY:
        raise UsageError(f"the reason has {len(why):,} characters, {LONGEST_WHY:,} fit", "put the rest into a document")
    return why.strip()


def _untouched(context: Context, registry: Registry) -> list[Promotion]:
    """Return the history; refuse an entry that is not what was decided."""
    entries, decided = history(context), registry.entries_with_prefix(ENTRY)
    for entry in entries:
        text = decided.get(f"{entry.number:06d}")
        if text is not None and Promotion.model_validate_json(text) != entry:
            key = history_key(entry.number)
            raise RetrainError(
                f"{key} in {context.store.uri} was changed: it is not what the registry holds as entry {entry.number}",
                f"find out who did it; then move {key} away, and the same command writes it again",
            )
    return entries


def _copy(context: Context, registry: Registry) -> None:
    for prefix, kind in ((ENTRY, Promotion.kind), (ANSWER, ApprovalAnswer.kind)):
        stored = {info.key for info in context.store.list(f"{OURS}{kind}/")}
        for id_, text in registry.entries_with_prefix(prefix).items():
            if (key := record_key(kind, id_)) not in stored:
                # Whoever writes it, writes the same: the registry holds the one text.
                context.store.put(key, text.encode())


def _refuse_other_registry(registry: Registry, last: Promotion) -> None:
    """Refuse to move the alias to a version that is not there, or is not the one that the history means."""
    hint = (
        "restore the registry, or correct RETRAIN_REGISTRY or RETRAIN_STORE; "
        f"to begin anew with another registry, move {OURS}history/ away"
    )
    says = f"the history says that version {last.version_after} is champion"
    try:
        registry.version(last.version_after)
    except UsageError as error:
        raise RetrainError(f"{says}, but: {error.message}", hint) from error
    if last.decision and (of := registry.decision_of(last.version_after)) != last.decision:
        raise RetrainError(f"{says}, by decision {last.decision}; the registry's is of decision {of}", hint)


def current_champion(registry: Registry) -> ChampionRef:
    """Return the champion.

    Raises:
        UsageError: when there is none yet.
    """
    champion = registry.champion()
    if champion is None:
        raise UsageError(f"no champion in {mask(registry.uri)} yet", "run a night first: `retrain run`")
    return champion
