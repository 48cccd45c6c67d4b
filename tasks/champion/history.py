"""History: every change of the champion, as entries that are only added; the champion follows from them.

An entry is decided by one write into the registry that exactly one writer can win (``Registry.put_if_absent``). The
store's copy and MLflow's alias follow; ``reconcile_champion`` repairs them where a process was killed in between.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from infra.registry.registry import Registry
from infra.store.keys import CHAMPION_ALIAS, OURS, history_key, proposal_key, record_key
from infra.store.records import REPAIRED
from tasks.context import Context
from tasks.judging.evidence import evaluation_digest
from tasks.judging.ledger import repair_looks
from validation.digest import digest
from validation.errors import ChampionChanged, ChampionUnusable, ObjectMissing, RetrainError, UsageError
from validation.records import ApprovalAnswer, Candidate, ChampionRef, Evaluation, Promotion
from validation.redaction import mask

log = logging.getLogger(__name__)

ENTRY, ANSWER = "history.", "answer."
LONGEST_WHY = 1_000


@dataclass(frozen=True)
class ChampionChange:
    """A change of the champion to be made; ``before`` is the champion that ``after`` was compared with.

    ``gone``: the version before, where the registry has lost it.
    """

    action: Literal["promoted", "approved", "override", "rollback", "rebuilt"]
    who: str
    decision: str
    before: ChampionRef | None
    after: ChampionRef
    why: str
    checked: str
    evaluation: Evaluation | None = None
    gone: str | None = None


def history(context: Context) -> list[Promotion]:
    """Return all changes of the champion, oldest first.

    Raises:
        RetrainError: when an entry is damaged or missing; its key is named.
    """
    entries = []
    for number, id_ in enumerate((id_ for id_ in context.records.ids(Promotion) if id_.isdigit()), start=1):
        if int(id_) != number:
            raise ObjectMissing(
                f"the history in {context.store.uri} has no entry {history_key(number)}, but later ones",
                f"the registry has it too: {REPAIRED}",
            )
        entries.append(context.records.load(Promotion, id_))
    return entries


def reconcile_champion(context: Context, registry: Registry) -> ChampionRef | None:
    """Finish what a killed process began, and return the champion, on which store and alias then agree.

    Entries and answers that were decided in the registry are copied to the store; the alias moves to the end of the
    history. It is read again after each move, so that the last of several processes leaves it right.

    Raises:
        ChampionUnusable: when the history names a version that is not in the registry.
    """
    repair_looks(context, registry)
    while True:
        _copy(context, registry)
        entries = untouched_history(context, registry)
        now = _readable_champion(context, registry, entries)
        if not entries or (now is not None and now.version == entries[-1].version_after):
            return now
        version = entries[-1].version_after
        _refuse_other_registry(registry, entries[-1])
        # Once in every change; otherwise only after a kill, or when the alias was moved by hand.
        before = now.version if now else None
        log.info("the alias `%s` now points to version %s (before: %s)", CHAMPION_ALIAS, version, before)
        registry.set_champion(version)


def _readable_champion(context: Context, registry: Registry, entries: Sequence[Promotion]) -> ChampionRef | None:
    """Return the champion; if its tags are gone or unreadable, they are written again, as the history has them."""
    try:
        return registry.champion()
    except ChampionUnusable:
        last = entries[-1] if entries else None
        candidate = context.records.find(Candidate, last.candidate or "") if last else None
        if last is None or candidate is None or last.model_sha256 is None or last.threshold is None:
            raise
        known = ChampionRef(
            version=last.version_after,
            candidate=candidate.id,
            model=candidate.model,
            model_sha256=last.model_sha256,
            threshold=last.threshold,
            since=last.at,
        )
        log.error(
            "the tags of version %s were gone or unreadable: written again, as the history has them", known.version
        )
        registry.write_tags(known)
        return registry.champion()


def append_change(context: Context, registry: Registry, change: ChampionChange) -> ChampionRef:
    """Make a change of the champion: decide its entry, then bring store and alias in line.

    Raises:
        ChampionChanged: when the champion is no longer ``change.before``, or another change was decided first.
    """
    entries = history(context)
    before = change.before.version if change.before else change.gone
    if entries and _is_same_approval(entries[-1], change):
        return change.after
    if entries and _is_same_promotion(entries[-1], change):
        reconcile_champion(context, registry)  # the other machine may have been killed before it moved the alias
        return registry.version(entries[-1].version_after)
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
        candidate=change.after.candidate,
        model_sha256=change.after.model_sha256,
        threshold=change.after.threshold,
        evaluation=change.evaluation.id if change.evaluation else None,
        evaluation_digest=evaluation_digest(change.evaluation) if change.evaluation else None,
        # Another machine's clock may be ahead, and times must not decrease.
        at=max(now, entries[-1].at) if entries else now,
    )
    text = entry.model_dump_json(indent=2)
    # First into the store: an entry that stands in the registry alone was written by nobody who may write here.
    context.store.put(proposal_key(number, digest(text)), text.encode())
    decided = registry.put_if_absent(f"{ENTRY}{number:06d}", text)
    reconcile_champion(context, registry)
    if decided != text:
        winner = Promotion.model_validate_json(decided)
        if _is_same_promotion(winner, change):
            return registry.version(winner.version_after)
        if (winner.decision, winner.version_after) != (entry.decision, entry.version_after):
            refuse_changed(winner.version_after, before, f" ({winner.who}, {winner.at:%Y-%m-%d %H:%M:%S} UTC)")
        elif not _is_same_approval(winner, change):
            refuse_done([winner], 0)
    log.info("version %s (%s) is champion now", change.after.version, change.after.model)
    return change.after


def _is_same_approval(entry: Promotion, change: ChampionChange) -> bool:
    """Whether an entry is this very approval, which whoever approved again has carried out meanwhile."""
    made = entry.action, entry.decision, entry.version_after, entry.who
    return change.action == "approved" and made == ("approved", change.decision, change.after.version, change.who)


def _is_same_promotion(entry: Promotion, change: ChampionChange) -> bool:
    """Whether an entry is what a night was about to make: another machine, with the same decision, was first.

    Both registered the file, perhaps as two versions; either may say that it promoted.
    """
    made = entry.decision, entry.candidate, entry.model_sha256
    return change.action == "promoted" and made == (
        change.decision, change.after.candidate, change.after.model_sha256
    )  # fmt: skip


def refuse_done(entries: Sequence[Promotion], seen: int) -> None:
    """Raise ChampionChanged when a person's command finds more than the ``seen`` entries that it began with."""
    if len(entries) > seen:
        last = entries[-1]
        raise ChampionChanged(
            f"the champion was changed meanwhile: {described(last)}",
            "this command changed nothing. Look at `retrain history`, and decide again",
        )


def described(entry: Promotion) -> str:
    """Return what an entry did, when, by whom and why, in one line."""
    made = f"version {entry.version_after} was made champion ({entry.action})"
    return f"{made} by {entry.who} at {entry.at:%Y-%m-%d %H:%M} UTC: {entry.why}"


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
    """Return the versions that led to today's champion, oldest first, without those that were rolled back."""
    lineage: list[str] = []
    known: set[str] = set()
    for entry in entries:
        if entry.action == "rebuilt":
            continue
        if not lineage and entry.version_before is not None:
            lineage.append(entry.version_before)
            known.add(entry.version_before)
        if entry.action == "rollback" and entry.version_after in known:
            while lineage[-1] != entry.version_after:
                known.discard(lineage.pop())
        else:
            lineage.append(entry.version_after)
            known.add(entry.version_after)
    return lineage


def was_promoted(context: Context, decision: str, evaluation: str | None = None) -> bool:
    """Whether a decision, or another one that rests on the same evaluation, has ever made its challenger champion."""
    changes = [entry for entry in history(context) if entry.action != "rollback"]
    return any(
        entry.decision == decision or (evaluation is not None and entry.evaluation == evaluation) for entry in changes
    )


def checked_why(why: str) -> str:
    """Return a person's reason; raises UsageError when it is empty or too long."""
    if not why.strip():
        raise UsageError("a reason is needed", "say why: --why 'what you saw, and where'")
    if len(why) > LONGEST_WHY:
        raise UsageError(f"the reason has {len(why):,} characters, {LONGEST_WHY:,} fit", "put the rest into a document")
    return why.strip()


def untouched_history(context: Context, registry: Registry) -> list[Promotion]:
    """Return the history, of which the store alone proves nothing.

    Raises:
        RetrainError: for an entry that differs from what was decided.
        ChampionUnusable: where the registry has no history at all, and the store has one.
    """
    entries, decided = history(context), registry.entries_with_prefix(ENTRY)
    if entries and not decided:
        raise ChampionUnusable(
            f"the history in {context.store.uri} says that version {entries[-1].version_after} is champion, but the "
            f"registry {mask(registry.uri)} has no history: it was lost, or it is another one",
            "is it the right one (RETRAIN_REGISTRY, RETRAIN_STORE)? restore the registry from a backup; without one "
            "`retrain rebuild-registry` makes it again from the store, on a person's word",
        )
    for entry in entries:
        text = decided.get(f"{entry.number:06d}")
        if text is None:
            raise RetrainError(
                f"{history_key(entry.number)} in {context.store.uri} was never decided: the registry has no such entry",
                f"find out who wrote it, and move {history_key(entry.number)} away",
            )
        if Promotion.model_validate_json(text) != entry:
            key = history_key(entry.number)
            raise RetrainError(
                f"{key} in {context.store.uri} was changed: it differs from entry {entry.number} in the registry",
                f"find out who changed it; then move {key} away, and {REPAIRED}",
            )
    return entries


def _copy(context: Context, registry: Registry) -> None:
    decided = registry.entries_with_prefix("")
    for prefix, kind in ((ENTRY, Promotion.kind), (ANSWER, ApprovalAnswer.kind)):
        # Only now: what was decided meanwhile, by another machine, was proposed before.
        stored = {info.key for info in context.store.list(f"{OURS}{kind}/")}
        for name, text in decided.items():
            id_ = name.removeprefix(prefix)
            if not name.startswith(prefix) or (key := record_key(kind, id_)) in stored:
                continue
            if prefix == ENTRY and proposal_key(int(id_), digest(text)) not in stored:
                raise RetrainError(
                    f"entry {id_} of the history is in the registry alone: it was not proposed in {context.store.uri}",
                    f"find out who wrote it. If it is right (the bucket was lost), write its text to {key}",
                )
            context.store.put(key, text.encode())  # every writer writes the registry's text


def _refuse_other_registry(registry: Registry, last: Promotion) -> None:
    """Refuse to move the alias to a missing version, or to one that is not the one in the history."""
    says = f"the history says that version {last.version_after} is champion"
    there = ", ".join(registry.version_numbers())
    rollback = f"or make one that is there champion (`retrain rollback N --why ...`; N: {there})" if there else ""
    hint = (
        f"is it the right one (RETRAIN_REGISTRY, RETRAIN_STORE)? restore the registry from a backup {rollback}".rstrip()
    )
    try:
        registry.version(last.version_after)
    except UsageError as error:
        raise ChampionUnusable(f"{says}, but: {error.message}", hint) from error
    if last.decision and (of := registry.decision_of(last.version_after)) != last.decision:
        raise ChampionUnusable(f"{says}, by decision {last.decision}; the registry's is of decision {of}", hint)


def current_champion(context: Context, registry: Registry) -> ChampionRef:
    """Return the champion.

    Raises:
        UsageError: when there is none yet.
        ChampionUnusable: when there is none any more, or its tags cannot be read.
    """
    champion = registry.champion()
    if champion is None:
        if entries := history(context):
            _refuse_other_registry(registry, entries[-1])
        raise UsageError(
            f"no champion in {mask(registry.uri)} yet: no night has promoted one",
            "run a night (`retrain run`), or read why the last one promoted none (`retrain report latest`)",
        )
    return champion
