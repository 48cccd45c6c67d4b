"""A lost registry, made again from the store: versions whose files are there, the history, its seals and looks.

The store alone proves nothing: whoever may write to the bucket could have changed all of it. So a person names the
champion's file by its SHA-256, which reports and backups have, and a last entry of the history says who did it and why.
"""

from __future__ import annotations

import logging

from infra.registry.registry import Registry
from infra.store.keys import history_key
from tasks.champion.history import ENTRY, ChampionChange, append_change, checked_why, history
from tasks.champion.reproduce import reproduce
from tasks.context import Context
from tasks.judging.evidence import SEAL
from tasks.judging.ledger import restore_looks
from validation.digest import sha256
from validation.errors import ObjectMissing, RetrainError, Unreachable, UsageError
from validation.records import Candidate, ChampionRef, Decision, Evaluation, Promotion

log = logging.getLogger(__name__)

SHORTEST = 12


def rebuild_registry(context: Context, registry: Registry, champion: str, *, why: str, who: str) -> ChampionRef:
    """Make a registry again that was lost without a backup; return the champion. Killed, it is run again.

    ``champion``: the SHA-256 of the champion's model file, or its first 12 digits or more. Versions that never were
    champion, or whose file is gone, are not had again: their numbers stay free.

    Raises:
        UsageError: when the registry has another history, or the store none, or another champion than the named one.
        ObjectMissing: when the champion's file is not in the store.
    """
    why = checked_why(why)
    with context.workspace.champion_lock():
        entries = history(context)
        texts = {f"{entry.number:06d}": context.store.get(history_key(entry.number)).decode() for entry in entries}
        _refuse_not_lost(context, registry, entries, texts)
        last = entries[-1]
        named = champion.strip().lower()
        if len(named) < SHORTEST or not (last.model_sha256 or "").startswith(named):
            raise UsageError(
                f"the history in {context.store.uri} ends with a file of SHA-256 {last.model_sha256}, not {named!r}",
                f"name the file that was champion, by {SHORTEST} digits or more: a report shows them. If they differ, "
                "find out who changed the bucket",
            )
        _register_all(context, registry, entries)
        for number, text in texts.items():
            registry.put_if_absent(f"{ENTRY}{number}", text)
        for entry in entries:
            if entry.evaluation and entry.evaluation_digest:
                registry.put_if_absent(f"{SEAL}{entry.evaluation}", entry.evaluation_digest)
        restore_looks(context, registry)
        target = registry.version(last.version_after)
        decision = context.records.find(Decision, last.decision) if last.decision else None
        checked = reproduce(context, registry, target, decision, strict=False)
        evaluation = context.records.find(Evaluation, last.evaluation) if last.evaluation else None
        change = ChampionChange("rebuilt", who, last.decision, target, target, why, checked, evaluation)
        return append_change(context, registry, change)


def _refuse_not_lost(context: Context, registry: Registry, entries: list[Promotion], texts: dict[str, str]) -> None:
    if not entries:
        raise UsageError(f"there is no history in {context.store.uri} to make the registry from", "run a night")
    decided = registry.entries_with_prefix(ENTRY)
    # Some of them, where this was killed before.
    if len(decided) == len(texts) or any(texts.get(number) != text for number, text in decided.items()):
        raise UsageError(
            "the registry has a history of champions: it is not lost",
            "`retrain history` shows it, and says where it differs from the store's",
        )


def _register_all(context: Context, registry: Registry, entries: list[Promotion]) -> None:
    """Register what was champion and still has its file, under the numbers of before."""
    made = {int(entry.version_after): entry for entry in reversed(entries)}
    newest = int(entries[-1].version_after)
    there = {int(number) for number in registry.version_numbers()}
    for number in range(1, max(made) + 1):
        if number in there:
            continue
        try:
            if number not in made:
                raise ObjectMissing(
                    f"version {number} never was champion", "a night trains others; its number stays free"
                )
            _register(context, registry, made[number])
        except RetrainError as error:
            if number == newest or isinstance(error, Unreachable | UsageError):
                raise
            registry.skip_version(number)
            log.warning("version %d is not had again: %s", number, error.message)


def _register(context: Context, registry: Registry, entry: Promotion) -> None:
    candidate = context.records.load(Candidate, entry.candidate or "")
    decision = context.records.load(Decision, entry.decision)
    model = context.store.get(candidate.model_key)
    if sha256(model) != entry.model_sha256 or candidate.threshold != entry.threshold:
        raise RetrainError(
            f"{candidate.model_key} or its threshold is not what entry {entry.number} of the history names",
            "find out who changed it, or restore it from the bucket's earlier versions",
        )
    evaluation = context.records.find(Evaluation, entry.evaluation) if entry.evaluation else None
    reference = registry.register(candidate, model, decision, evaluation)
    if reference.version != entry.version_after:
        raise UsageError(
            f"the registry gave version {reference.version} where {entry.version_after} was expected",
            "begin with an empty registry: move its database away",
        )
