"""Commands about the data: look at what lies in the store, and at what was left out of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table
from rich.text import Text

from flows import console
from flows.cli.common import AsJson, open_context, prepared_settings
from validation.errors import DataInvalid
from validation.findings import REASONS

if TYPE_CHECKING:
    import pandas as pd

    from tasks.commands.inspect_data import Inspection
    from validation.records import ValidationResult

SHOWN = 10
COLOURS = {"stop": "bold red", "reject": "red", "warn": "yellow"}


def add_to(app: typer.Typer) -> None:
    """Register the commands."""

    @app.command()
    def validate(as_json: AsJson = False) -> None:
        """Pull and validate, nothing else: what was found by reason, and whether a night would train on it."""
        from infra.registry.registry import Registry
        from tasks.commands.inspect_data import inspect_now

        settings = prepared_settings()
        context = open_context(settings)
        found = inspect_now(context, Registry(settings).champion())
        if as_json:
            console.json_line(found.result)
        else:
            _print_inspection(found)
        if not found.result.valid:
            raise SystemExit(DataInvalid.exit_code)

    @app.command()
    def quarantine(
        reason: Annotated[str, typer.Option(help="Only findings of this reason, warnings too.")] = "",
        warnings: Annotated[bool, typer.Option("--warnings", help="Also what was accepted with a warning.")] = False,
        reasons: Annotated[bool, typer.Option("--reasons", help="Explain every reason there is, and end.")] = False,
        all_: Annotated[bool, typer.Option("--all", help=f"All images, not the first {SHOWN} of each reason.")] = False,
        as_json: AsJson = False,
    ) -> None:
        """List the images that the newest validation left out, with the reason and what to do about each.

        The originals stay where they are. Put a repaired image under the same key, and the next night takes it in.
        """
        if reasons:
            _print_reasons(as_json)
            return
        from tasks.commands.inspect_data import last_validation, quarantined

        context = open_context()
        result = last_validation(context)
        table = quarantined(context, result, reason=reason, warnings=warnings)
        if as_json:
            console.json_line({"validation": result.id, "findings": table.to_dict("records")})
        else:
            _print_findings(table, result, shown=len(table) if all_ else SHOWN)


def _print_inspection(found: Inspection) -> None:
    result = found.result
    counts = ", ".join(f"{count:,} {label}" for label, count in result.by_class.items())
    console.out.print(
        Text(f"{result.accepted:,} of {result.images:,} images accepted ({counts}) of {result.patients:,} patients")
    )
    console.out.print(Text(f"{result.new:,} of them new; usual is measured against {result.reference}", "dim"))
    if result.reasons:
        table = Table("reason", Column("images", justify="right"), Column("new", justify="right"), "costs", "meaning")
        table.box = None
        severities = {finding.reason: finding.severity for finding in result.examples}
        for reason, count in result.reasons.items():
            severity = severities[reason]
            new = result.new_reasons.get(reason, 0)
            meaning = REASONS[reason].meaning
            table.add_row(reason, f"{count:,}", f"{new:,}", Text(severity, COLOURS[severity]), meaning)
        console.out.print(table)
    for check in result.checks:
        if not check.passed:
            word, colour = ("stops the night", "bold red") if check.severity == "invalid" else ("warning", "yellow")
            console.out.print(
                Text.assemble((word, colour), f"  {check.name}: {check.observed}, expected {check.expected}")
            )
    passed = sum(check.passed for check in result.checks)
    console.out.print(
        Text(f"{passed} of {len(result.checks)} checks passed; `retrain quarantine` lists what was left out", "dim")
    )
    verdict = Text("VALID", "bold green") if result.valid else Text("INVALID DATA", "bold red")
    console.out.print(
        verdict.append("  a night would train on it" if result.valid else "  a night would not train on it")
    )


def _print_findings(table: pd.DataFrame, result: ValidationResult, *, shown: int) -> None:
    if table.empty:
        console.out.print(Text(f"nothing: {result.accepted:,} of {result.images:,} images were accepted"))
        return
    for reason, rows in table.groupby("reason", sort=False):
        first = rows.iloc[0]
        severity = str(first["severity"])
        console.out.print(
            Text.assemble((str(reason), COLOURS[severity]), f" ({len(rows):,}, {severity}): {first['meaning']}")
        )
        console.out.print(Text(f"  what to do: {first['advice']}", "dim"))
        for row in rows.head(shown).itertuples():
            console.out.print(Text(f"  {_plain(row.key)}  {_plain(row.detail)}{'  NEW' if row.new else ''}"))
        if len(rows) > shown:
            console.out.print(Text(f"  and {len(rows) - shown:,} more: --all shows them", "dim"))


def _print_reasons(as_json: bool) -> None:
    if as_json:
        console.json_line(REASONS)
        return
    for name, reason in REASONS.items():
        console.out.print(Text.assemble((name, COLOURS[reason.severity]), f" ({reason.severity}): {reason.meaning}"))
        console.out.print(Text(f"  what to do: {reason.advice}", "dim"))


def _plain(value: Any) -> str:
    """A key may hold control characters, which would act on the terminal."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in str(value))
