"""The command ``retrain prune``: remove what is not needed any more, or say what would be removed, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table
from rich.text import Text

from flows import console
from flows.cli.common import AsJson, open_context, prepared_settings
from validation.errors import RetrainError

if TYPE_CHECKING:
    from tasks.pruning.prune import Pruned


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(prune)


def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing: say what would go, and why.")] = False,
    all_: Annotated[bool, typer.Option("--all", help="Name every single thing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove what is not needed any more: caches, work folders, what nothing in the store refers to, old reports.

    A night does it at its end by itself. Input objects, decisions, the history and registered versions always stay.
    """
    from infra.registry.registry import Registry
    from tasks.pruning.prune import prune as prune_now

    settings = prepared_settings()
    context = open_context(settings)
    registry = Registry(settings)
    with context.workspace.night_lock(), console.err.status("looking for what is not needed any more"):
        pruned = prune_now(context, registry, dry_run=dry_run)
    if as_json:
        console.json_line(_as_json(pruned, names=all_))
    else:
        _print(pruned, names=all_)
    if pruned.problems:
        raise RetrainError(
            f"not everything could be looked at or removed: {'; '.join(pruned.problems[:3])}",
            "what was removed was not needed; correct the cause and prune again",
        )


def _as_json(pruned: Pruned, *, names: bool) -> dict[str, Any]:
    told: dict[str, Any] = {
        "dry_run": pruned.dry_run,
        "things": len(pruned.removals),
        "bytes": pruned.size,
        "by_reason": [
            {"area": area, "why": why, "things": count, "bytes": size}
            for (area, why), (count, size) in pruned.by_reason().items()
        ],
        "waiting": pruned.waiting,
        "problems": pruned.problems,
    }
    if names:
        told["removals"] = [{"area": r.area, "name": r.name, "bytes": r.size, "why": r.why} for r in pruned.removals]
    return told


def _print(pruned: Pruned, *, names: bool) -> None:
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
        console.out.print(Text(f"nothing refers to {waiting}: they wait for their time (prune.orphan_days)", "dim"))
