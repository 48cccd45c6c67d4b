"""The command ``retrain prune``: remove what is no longer needed, or print what would be removed, and why."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table
from rich.text import Text

from flows import console
from flows.cli.common import AsJson, open_registry
from validation.errors import RetrainError

if TYPE_CHECKING:
    from tasks.pruning.prune import Pruned


def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing: print what would go, and why.")] = False,
    all_: Annotated[bool, typer.Option("--all", help="Name every single object.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove what is no longer needed: caches, work folders, unreferenced objects in the store, old reports.

    Every night does so at its end. Input objects, decisions, the history and registered versions always stay.
    """
    from tasks.pruning.prune import prune as prune_now

    context, registry = open_registry()
    with context.workspace.night_lock(), console.err.status("looking for what is no longer needed"):
        pruned = prune_now(context, registry, dry_run=dry_run)
    console.emit(_facts(pruned, names=all_), as_json, partial(_print, pruned, names=all_))
    if pruned.problems:
        raise RetrainError(
            f"not everything could be examined or removed: {'; '.join(pruned.problems[:3])}",
            "what was removed was not needed; correct the cause and prune again",
        )


def _facts(pruned: Pruned, *, names: bool) -> dict[str, Any]:
    removals = [{"area": r.area, "name": r.name, "bytes": r.size, "why": r.why} for r in pruned.removals]
    return {
        "dry_run": pruned.dry_run,
        "things": len(removals),
        "bytes": pruned.size,
        "by_reason": [
            {"area": area, "why": why, "things": count, "bytes": size}
            for (area, why), (count, size) in pruned.by_reason().items()
        ],
        "waiting": pruned.waiting,
        "problems": pruned.problems,
        **({"removals": removals} if names else {}),
    }


def _print(pruned: Pruned, _: Any, *, names: bool) -> None:
    if names:
        for removal in pruned.removals:
            console.out.print(Text(f"{removal.size:>12,}  {removal.name}  ({removal.why})"))
    if pruned.removals:
        table = Table("where", Column("things", justify="right"), Column("MB", justify="right"), "why", box=None)
        for (area, why), (count, size) in pruned.by_reason().items():
            table.add_row(area, f"{count:,}", f"{size / 1e6:,.1f}", why)
        console.out.print(table)
    verb = "would be removed" if pruned.dry_run else "removed"
    console.out.print(Text(f"{len(pruned.removals):,} things, {pruned.size / 1e6:,.1f} MB {verb}", "bold"))
    if pruned.waiting:
        waiting = ", ".join(f"{count:,} {kind}" for kind, count in sorted(pruned.waiting.items()))
        console.out.print(
            Text(f"unreferenced, kept until their grace period ends (prune.orphan_days): {waiting}", "dim")
        )
