"""Prints docs/commands.md, from the help of the command line: ``python -m docs.commands > docs/commands.md``."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from docs.troubleshooting import plain
from flows.cli.main import app

_INTRODUCTION = """\
# Commands

This page is generated from the help of the command line (`retrain --help`, `retrain COMMAND --help`): change the help
in `flows/cli/`, then run `python -m docs.commands > docs/commands.md`.

`make run` and `make test` leave the command line at `.venv/bin/retrain`. Every command takes `--json` (one JSON value
on standard output, for programs) and `--help`. {exits}
[troubleshooting.md](troubleshooting.md) has every error message.

| command | what it does |
|---|---|"""


def reference() -> str:
    """Return the page, in Markdown."""
    group: Any = get_command(app)
    commands = {name: group.commands[name] for name in sorted(group.commands)}
    lines = [_INTRODUCTION.format(exits=group.epilog)]
    for name, command in commands.items():
        lines.append(f"| [`retrain {name}`](#retrain-{name}) | {_paragraphs(command)[0].rstrip('.')} |")
    for name, command in commands.items():
        lines += [f"\n## retrain {name}", *(f"\n{text}" for text in _paragraphs(command)), *_section(name, command)]
    return "\n".join(lines) + "\n"


def _section(name: str, command: Any) -> Iterator[str]:
    context = command.make_context(f"retrain {name}", ["--help"], resilient_parsing=True)
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"\n```text\nretrain {name} {usage}\n```"
    rows = [row for parameter in command.params if (row := _row(parameter, context))]
    if rows:
        yield "\n| argument or option | meaning |\n|---|---|"
        yield from rows
    yield f"\n```bash\n{command.epilog.removeprefix('Example: ')}\n```"


def _row(parameter: Any, context: Any) -> str:
    """Return a row of the table, but for what every command has."""
    if parameter.name == "as_json":
        return ""
    name, text = (" ".join(part.split()) for part in parameter.get_help_record(context))
    return f"| `{name.split(' <')[0]}` | {plain(text)} |".replace("[ID|", r"[ID\|")


def _paragraphs(command: Any) -> list[str]:
    return [plain(text) for text in inspect.cleandoc(command.help).split("\n\n")]


if __name__ == "__main__":
    sys.stdout.write(reference())
