"""The commands about the champion: champion, history, rollback, promote, approve, reject, rebuild-registry."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flows import console
from flows.cli import display
from flows.cli.common import AsJson, open_context, open_registry, prepared_settings
from validation.errors import UsageError

if TYPE_CHECKING:
    from tasks.context import Context
    from validation.records import ChampionRef

At = Annotated[
    str | None,
    typer.Option("--at", metavar="TIME", help='The champion at a time, for instance "2026-01-31 12:00" (UTC).'),
]
Why = Annotated[str, typer.Option("--why", help="The reason; it is recorded in the history.")]
Name = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="Your name; the history records it beside your login.")
]
Decision = Annotated[str, typer.Argument(metavar="DECISION", help="A decision's id, the start of it, or 'latest'.")]


def champion(at: At = None, as_json: AsJson = False) -> None:
    """Print which model is champion, since when, why, and how good it was promised to be and is found."""
    from infra.registry.registry import Registry
    from tasks.commands.describe_champion import describe_champion
    from tasks.context import Context

    settings = prepared_settings()
    facts = describe_champion(Context.open(settings), Registry(settings), moment(at))
    console.emit(facts, as_json, lambda shown: display.facts({**shown, "field": None}))


def moment(text: str | None) -> datetime | None:
    """Return a time in ISO 8601; without a zone it is UTC.

    Raises:
        UsageError: when it is not a valid time.
    """
    if text is None:
        return None
    try:
        value = datetime.fromisoformat(text.strip())
    except ValueError:
        raise UsageError(
            f"--at {text!r} is not a valid time", 'expected for instance "2026-01-31 12:00" (UTC)'
        ) from None
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def history(as_json: AsJson = False) -> None:
    """Print who or what changed the champion, when, from which version to which, why, and on which evidence."""
    from infra.registry.registry import Registry
    from tasks.commands.describe_champion import describe_history
    from validation.errors import RegistryUnreachable

    context, registry = open_context(), None
    with suppress(RegistryUnreachable):
        registry = Registry(context.settings)
    console.emit(describe_history(context, registry), as_json, display.history)


def rollback(
    why: Why,
    version: Annotated[str | None, typer.Argument(help="Default: the champion before this one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make an earlier champion champion again. The history gets a new entry; nothing is rewritten."""
    from infra.provenance import person
    from tasks.commands.rollback import rollback as roll_back

    context, registry = open_registry()
    _changed(context, roll_back(context, registry, version, why=why, who=person()), "rollback", as_json)


def promote(decision: Decision, why: Why, as_json: AsJson = False) -> None:
    """Make a decision's challenger champion by hand, even one that the gate rejected: recorded as an override."""
    from infra.provenance import person
    from tasks.commands.rollback import override
    from tasks.nights import find_decision

    context, registry = open_registry()
    champion = override(context, registry, find_decision(context, decision), why=why, who=person())
    _changed(context, champion, "override", as_json)


def rebuild_registry(
    champion: Annotated[
        str, typer.Argument(metavar="SHA256", help="Of the champion's model file, 12 digits or more: see a report.")
    ],
    why: Why,
    as_json: AsJson = False,
) -> None:
    """Make a registry that was lost without a backup again from the store, on a person's word."""
    from infra.provenance import person
    from tasks.commands.rebuild_registry import rebuild_registry as rebuild

    context, registry = open_registry()
    _changed(context, rebuild(context, registry, champion, why=why, who=person()), "rebuilt", as_json)


def approve(decision: Decision, why: Why, name: Name = None, as_json: AsJson = False) -> None:
    """Approve the challenger of a decision that awaits approval: it becomes champion."""
    _answer(decision, "approve", why, name, as_json)


def reject(decision: Decision, why: Why, name: Name = None, as_json: AsJson = False) -> None:
    """Reject the challenger of a decision that awaits approval: the champion stays."""
    _answer(decision, "reject", why, name, as_json)


def _answer(decision: str, reply: Literal["approve", "reject"], why: str, name: str | None, as_json: bool) -> None:
    from infra.provenance import person
    from tasks.commands.answer_approval import answer, signed
    from tasks.report import show_answer

    who = person() if name is None else signed(name, person())
    context, registry = open_registry()
    given, champion = answer(context, registry, decision, reply, why=why, who=who)
    show_answer(context, given.decision)
    shown = {"decision": given.decision, "answer": given.answer, "who": given.who, "why": given.why}
    console.emit({"answer": given, "champion": champion}, as_json, partial(_show, shown))


def _changed(context: Context, champion: ChampionRef, action: str, as_json: bool) -> None:
    from tasks.reporting.index import refresh_index

    refresh_index(context)
    console.emit({"action": action, "champion": champion}, as_json, partial(_show, {"action": action}))


def _show(facts: dict[str, Any], result: dict[str, Any]) -> None:
    champion = result["champion"]
    display.facts({**facts, "champion": f"version {champion.version} ({champion.model})" if champion else None})
