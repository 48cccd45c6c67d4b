"""The commands about the data: validate the cells in the store, and list those that were left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from flows import console
from flows.cli.common import AsJson, open_context, open_registry
from validation.errors import DataInvalid
from validation.findings import REASONS
from validation.redaction import printable

if TYPE_CHECKING:
    import pandas as pd

    from validation.findings import Reason
    from validation.records import ValidationResult

SHOWN = 10
COLOURS = {"stop": "bold red", "reject": "red", "warn": "yellow"}


def validate(as_json: AsJson = False) -> None:
    """Pull and validate only: print the findings by reason, and whether a night would train on this data."""
    from tasks.commands.inspect_data import inspect_now

    context, registry = open_registry()
    result = inspect_now(context, registry.champion())
    console.emit(result, as_json, _print_validation)
    if not result.valid:
        raise SystemExit(DataInvalid.exit_code)


def quarantine(
    reason: Annotated[str, typer.Option(help="Only findings of this reason, warnings too.")] = "",
    warnings: Annotated[bool, typer.Option("--warnings", help="Also what was accepted with a warning.")] = False,
    reasons: Annotated[bool, typer.Option("--reasons", help="Explain every reason, and exit.")] = False,
    all_: Annotated[bool, typer.Option("--all", help=f"All images, not the first {SHOWN} of each reason.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the images that the newest validation left out, with the reason and what to do about each.

    The originals stay in place. Put a repaired image under the same key, and the next night takes it in.
    """
    if reasons:
        console.emit(REASONS, as_json, _print_reasons)
        return
    from tasks.commands.inspect_data import last_validation, quarantined

    context = open_context()
    result = last_validation(context)
    table = quarantined(context, result, reason=reason, warnings=warnings)
    console.emit(
        {"validation": result.id, "findings": table.to_dict("records")},
        as_json,
        lambda _: _print_findings(table, result, shown=len(table) if all_ else SHOWN),
    )


def _print_validation(result: ValidationResult) -> None:
    show = console.out.print
    counts = ", ".join(f"{count:,} {label}" for label, count in result.by_class.items())
    show(Text(f"{result.accepted:,} of {result.images:,} images accepted ({counts}) of {result.patients:,} patients"))
    show(Text(f"{result.new:,} of them new; drift is measured against {result.reference}", "dim"))
    if result.reasons:
        columns = "reason", Column("images", justify="right"), Column("new", justify="right"), "costs", "meaning"
        table = Table(*columns)
        table.box = None
        severities = {finding.reason: finding.severity for finding in result.examples}
        for reason, count in result.reasons.items():
            cost = Text(severities[reason], COLOURS[severities[reason]])
            new = result.new_reasons.get(reason, 0)
            table.add_row(reason, f"{count:,}", f"{new:,}", cost, REASONS[reason].meaning)
        show(table)
    failed = [check for check in result.checks if not check.passed]
    for check in failed:
        word, colour = ("stops the night", "bold red") if check.severity == "invalid" else ("warning", "yellow")
        show(Text.assemble((word, colour), f"  {check.name}: {check.observed}, expected {check.expected}"))
    passed = len(result.checks) - len(failed)
    show(Text(f"{passed} of {len(result.checks)} checks passed; `retrain quarantine` lists what was left out", "dim"))
    verdict, colour, would = ("VALID", "green", "would") if result.valid else ("INVALID DATA", "red", "would not")
    show(Text.assemble((verdict, f"bold {colour}"), f"  a night {would} train on it"))


def _print_findings(table: pd.DataFrame, result: ValidationResult, *, shown: int) -> None:
    if table.empty:
        console.out.print(Text(f"nothing: {result.accepted:,} of {result.images:,} images were accepted"))
    for reason, rows in table.groupby("reason", sort=False):
        first = rows.iloc[0]
        _print_heading(str(reason), first["severity"], f"{len(rows):,}, ", first["meaning"], first["advice"])
        for row in rows.head(shown).itertuples():
            console.out.print(Text(f"  {printable(row.key)}  {printable(row.detail)}{'  NEW' if row.new else ''}"))
        if len(rows) > shown:
            console.out.print(Text(f"  and {len(rows) - shown:,} more: --all shows them", "dim"))


def _print_reasons(reasons: dict[str, Reason]) -> None:
    for name, reason in reasons.items():
        _print_heading(name, reason.severity, "", reason.meaning, reason.advice)


def _print_heading(reason: str, severity: str, count: str, meaning: str, advice: str) -> None:
    console.out.print(Text.assemble((reason, COLOURS[severity]), f" ({count}{severity}): {meaning}"))
    console.out.print(Text(f"  what to do: {advice}", "dim"))
