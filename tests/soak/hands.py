"""What people do between the nights of a soak. Each function runs in a forked process and answers in plain values."""

from __future__ import annotations

from typing import Any

from infra.registry.registry import Registry
from infra.settings.settings import load_settings
from tasks.commands.answer_approval import answer
from tasks.commands.rollback import rollback
from tasks.context import Context
from tasks.pruning.prune import prune


def give_answer(decision: str, approves: bool) -> dict[str, Any]:
    """Approve or reject a challenger that waits."""
    settings = load_settings()
    context, registry = Context.open(settings), Registry(settings)
    reply = "approve" if approves else "reject"
    given, _ = answer(context, registry, decision, reply, why="as the soak has drawn", who="a person")  # type: ignore[arg-type]
    return {"answer": given.answer}


def go_back(version: str | None) -> dict[str, Any]:
    """Roll back: to a version, or to the champion before."""
    settings = load_settings()
    champion = rollback(
        Context.open(settings), Registry(settings), version, why="as the soak has drawn", who="a person"
    )
    return {"version": champion.version, "sha256": champion.model_sha256}


def prune_now(dry_run: bool = False) -> dict[str, Any]:
    """Prune by hand."""
    settings = load_settings()
    context = Context.open(settings)
    with context.workspace.night_lock():
        pruned = prune(context, Registry(settings), dry_run=dry_run)
    return {"things": len(pruned.removals), "bytes": pruned.size, "problems": pruned.problems}


def champion_file() -> dict[str, Any]:
    """Return the SHA-256 of the champion's registered file."""
    champion = Registry(load_settings()).champion()
    return {"sha256": champion.model_sha256 if champion else None}
