"""The commands about who is champion: history, rollback, promote, approve, reject."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows import console
from flows.cli import display
from flows.cli.common import AsJson, open_context, prepared_settings
from validation.errors import UsageError

if TYPE_CHECKING:
    from infra.registry.registry import Registry
    from tasks.context import Context
    from validation.records import ChampionRef

Why = Annotated[str, typer.Option("--why", help="The reason; it is kept in the history.")]
Decision = Annotated[str, typer.Argument(metavar="DECISION", help="A decision's id, the start of it, or 'latest'.")]


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (history, rollback, promote, approve, reject):
        app.command()(command)


def moment(text: str | None) -> datetime | None:
    """Return a time as a person or a program writes it; without a zone it is UTC.

    Raises:
        UsageError: when it is no time.
    """
    if text is None:
        return None
    try:
        value = datetime.fromisoformat(text.strip())
    except ValueError:
        raise UsageError(f"--at {text!r} is no time", 'expected for instance "2026-01-31 12:00" (UTC)') from None
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def history(as_json: AsJson = False) -> None:
    """Print who or what changed the champion, when, from which version to which, why, and on which evidence."""
    from tasks.commands.describe_champion import tell_history

    rows = tell_history(open_context())
    if as_json:
        console.json_line(rows)
    else:
        display.history(rows)


def rollback(
    why: Why,
    version: Annotated[str | None, typer.Argument(help="Default: the champion before this one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Put an earlier champion back. It is a new entry in the history; nothing is rewritten."""
    from infra.provenance import person
    from tasks.commands.rollback import rollback as roll_back

    context, registry = _places()
    champion = roll_back(context, registry, version, why=why, who=person())
    _changed(context, champion, "rollback", as_json)


def promote(decision: Decision, why: Why, as_json: AsJson = False) -> None:
    """Make a decision's challenger champion by hand, also one that the gate kept out: recorded as an override."""
    from infra.provenance import person
    from tasks.commands.rollback import override
    from tasks.nights import find_decision

    context, registry = _places()
    champion = override(context, registry, find_decision(context, decision), why=why, who=person())
    _changed(context, champion, "override", as_json)


def approve(decision: Decision, why: Why, as_json: AsJson = False) -> None:
    """Approve the challenger of a decision that awaits approval: it becomes champion."""
    _answer(decision, "approve", why, as_json)


def reject(decision: Decision, why: Why, as_json: AsJson = False) -> None:
    """Reject the challenger of a decision that awaits approval: the champion stays."""
    _answer(decision, "reject", why, as_json)


def _answer(decision: str, reply: Literal["approve", "reject"], why: str, as_json: bool) -> None:
    from infra.provenance import person
    from tasks.commands.answer_approval import answer
    from tasks.reporting.index import refresh_index

    context, registry = _places()
    given, champion = answer(context, registry, decision, reply, why=why, who=person())
    refresh_index(context)
    if as_json:
        console.json_line({"answer": given, "champion": champion})
    else:
        display.facts({"decision": given.decision, "answer": given.answer, "who": given.who, "why": given.why})
        if champion is not None:
            display.facts({"champion": f"version {champion.version} ({champion.model})"})


def _changed(context: Context, champion: ChampionRef, action: str, as_json: bool) -> None:
    from tasks.reporting.index import refresh_index

    refresh_index(context)
    if as_json:
        console.json_line({"action": action, "champion": champion})
    else:
        display.facts({"action": action, "champion": f"version {champion.version} ({champion.model})"})


def _places() -> tuple[Context, Registry]:
    from infra.registry.registry import Registry

    settings = prepared_settings()
    return open_context(settings), Registry(settings)
