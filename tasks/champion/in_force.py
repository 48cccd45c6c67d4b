"""Is the champion what was judged? Its registered file and threshold, its entry in the history, and its evaluation.

The registry has file, tags, history and seals; the bucket has history, candidates and evaluations. They must agree, so
that write access to one of them alone changes no champion unseen.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from infra.registry.registry import Registry
from tasks.champion.history import untouched_history
from tasks.context import Context
from tasks.judging.evidence import evaluation_digest, verify_sealed
from validation.errors import (
    ChampionUnusable,
    ModelFileInvalid,
    NotReproduced,
    RegistryUnreachable,
    RetrainError,
    Unreachable,
)
from validation.records import Candidate, ChampionRef, Evaluation, Promotion

log = logging.getLogger(__name__)


def check_in_force(context: Context, registry: Registry) -> ChampionRef | None:
    """Return the champion, None when there is none yet.

    What an entry of version 0.1 lacks is not compared.

    Raises:
        ChampionUnusable: when anything differs; the message says what and where.
    """
    champion = registry.champion()
    if champion is not None:
        verified_file(context, registry, champion)
    return champion


def champion_problem(context: Context, registry: Registry) -> str:
    """Return why the champion is not what was judged; empty when it is, or when there is none."""
    try:
        check_in_force(context, registry)
    except ChampionUnusable as error:
        log.error("%s", error)
        return error.message
    return ""


def verified_file(context: Context, registry: Registry, champion: ChampionRef) -> bytes:
    """Return the champion's registered file; raises as ``check_in_force`` does."""
    problems = _of_candidate(context, champion)
    try:
        entries = untouched_history(context, registry)
    except Unreachable:
        raise
    except RetrainError as error:
        problems.append(error.message)
    else:
        if entries and entries[-1].version_after != champion.version:
            problems.append(f"the history ends with version {entries[-1].version_after}, the alias was moved")
        elif entries:
            problems += _of_entry(context, registry, champion, entries[-1])
    data = b""
    try:
        data = registered_file(registry, champion)
    except ModelFileInvalid as error:
        problems.append(error.message)
    if problems:
        raise ChampionUnusable(
            f"version {champion.version} is not what was judged: {'; '.join(problems)}",
            "find out who changed it; roll back to another version (`retrain rollback --why ...`), or repair it",
        )
    return data


def refuse_changed_since(context: Context, version: ChampionRef, entries: Sequence[Promotion]) -> None:
    """Compare an earlier champion in the registry with its candidate and with the entry that made it champion.

    Raises:
        ModelFileInvalid: when file or threshold differ.
    """
    problems = _of_candidate(context, version)
    made = [entry for entry in entries if entry.version_after == version.version]
    if made:
        problems += _of_change(version, made[0])
    if problems:
        raise ModelFileInvalid(
            f"version {version.version} is not what became champion: {'; '.join(problems)}",
            "the registry was tampered with: find out who changed it, and choose another version",
        )


def registered_file(registry: Registry, version: ChampionRef) -> bytes:
    """Return a version's registered file.

    Raises:
        ModelFileInvalid: when the registry answers and the file is damaged or missing.
        RegistryUnreachable: when the registry does not answer.
    """
    try:
        return registry.model_bytes(version)
    except RegistryUnreachable as error:
        registry.champion()  # raises again when the registry itself does not answer
        raise ModelFileInvalid(f"its registered file cannot be fetched: {error.message}", error.hint) from error


def _of_candidate(context: Context, champion: ChampionRef) -> list[str]:
    candidate = context.records.find(Candidate, champion.candidate)
    if candidate is None:
        return []
    return _differences(
        champion, candidate.model_sha256, candidate.threshold, f"candidate {candidate.id} in the bucket"
    )


def _of_entry(context: Context, registry: Registry, champion: ChampionRef, entry: Promotion) -> list[str]:
    problems = _of_change(champion, entry)
    if entry.evaluation is None:
        return problems
    evaluation = context.records.find(Evaluation, entry.evaluation) or _restored(context, registry, champion, entry)
    if evaluation is None:
        return [*problems, f"its evaluation {entry.evaluation} is not in the bucket"]
    if evaluation_digest(evaluation) != entry.evaluation_digest:
        problems.append(f"evaluation {evaluation.id} in the bucket is not the one that entry {entry.number} rests on")
    try:
        verify_sealed(registry, evaluation)
    except NotReproduced as error:
        problems.append(error.message)
    where = f"evaluation {evaluation.id}"
    return [*problems, *_differences(champion, evaluation.challenger_sha256, evaluation.challenger_threshold, where)]


def _of_change(version: ChampionRef, entry: Promotion) -> list[str]:
    return _differences(version, entry.model_sha256, entry.threshold, f"entry {entry.number} of the history")


def _restored(context: Context, registry: Registry, champion: ChampionRef, entry: Promotion) -> Evaluation | None:
    """Write a lost or damaged evaluation again from the registry's copy, if that is the one the entry rests on."""
    try:
        evaluation = Evaluation.model_validate_json(registry.evidence(champion.version, "evaluation") or "")
    except ValueError:
        return None
    if evaluation.id != entry.evaluation or evaluation_digest(evaluation) != entry.evaluation_digest:
        return None
    context.records.save(evaluation, evaluation.id)
    log.error("evaluation %s was lost or damaged: it is written again from the registry's copy", evaluation.id)
    return evaluation


def _differences(champion: ChampionRef, sha256: str | None, threshold: float | None, where: str) -> list[str]:
    problems = []
    if sha256 is not None and sha256 != champion.model_sha256:
        problems.append(f"it is registered with a file of SHA-256 {champion.model_sha256}, {where} has {sha256}")
    if threshold is not None and threshold != champion.threshold:
        problems.append(f"it is registered with the threshold {champion.threshold!r}, {where} has {threshold!r}")
    return problems
