"""What the commands show: facts on standard output, progress on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Column, Table
from rich.text import Text

from infra.settings.settings import Settings
from validation.records import Interval, Verdict
from validation.redaction import mask

if TYPE_CHECKING:
    from tasks.commands.predict import Prediction
    from tasks.intake.import_cells import ImportProgress, ImportResult
    from validation.records import ChampionRef, Night
from flows.console import LogLines, err, out

COLOURS = {
    Verdict.PROMOTED: "bold green",
    Verdict.KEPT: "bold blue",
    Verdict.UNDECIDED: "bold yellow",
    Verdict.AWAITING_APPROVAL: "bold yellow",
    Verdict.CHAMPION_UNUSABLE: "bold red",
    Verdict.NOTHING_NEW: "bold",
    Verdict.INVALID_DATA: "bold red",
}


def verdict(night: Night, report: str | None) -> None:
    """Print a night's verdict in one line, its headline numbers, and where its report is."""
    line = Text()
    line.append(night.verdict.value.upper(), COLOURS[night.verdict])
    line.append(f"  {night.sentence}")
    numbers = [
        f"{name.replace('_', ' ')} {_interval(interval)}" for name, interval in night.metrics.items() if interval
    ]
    if numbers:
        out.print(Text(f"{night.challenger_model} on holdout patients: {'; '.join(numbers)}"))
    for model, why in night.failed_trainings.items():
        out.print(Text(f"{model} could not be trained, and the night went on without it: {why}", "bold red"))
    if night.synthetic:
        out.print(Text("These cells are SYNTHETIC: the figures say nothing about real blood.", "yellow"))
    out.print(line)
    if report:
        out.print(Text(f"report: {report}"))


def predictions(champion: ChampionRef, rows: Sequence[Prediction]) -> None:
    """Print one line an image."""
    for row in rows:
        if row.problem:
            out.print(Text(f"{'-':>8}  {'not scored':<12} {row.path}  ({row.problem})", "red"))
        else:
            out.print(Text(f"{row.probability:8.6f}  {row.call:<12} {row.path}"))
    err.print(
        Text(f"champion: version {champion.version} ({champion.model}), threshold {champion.threshold:.6f}", "dim")
    )


def facts(values: dict[str, Any]) -> None:
    """Print named facts, one a line; never wrapped, so that they can be copied."""
    for name, value in values.items():
        parts = value if isinstance(value, dict) else {name: value}
        for part, fact in parts.items():
            if fact is not None:
                shown = _interval(Interval.model_validate(fact)) if isinstance(fact, dict) else str(fact)
                out.print(Text(f"{part.replace('_', ' '):<18} {shown}"))


def history(rows: Sequence[dict[str, Any]]) -> None:
    """Print the changes of the champion, oldest first: what happened on one line, its reason and evidence below."""
    for row in rows:
        line = Text(f"{row['at'][:19].replace('T', ' ')} UTC  ", "bold")
        line.append(row["action"])
        if row["to"] is not None:
            line.append(f": version {row['from'] or 'none'} -> {row['to']}")
        line.append(f"  by {row['who']}", "dim")
        out.print(line)
        for name in ("why", "checked", "decision", "report"):
            if row[name]:
                out.print(Text(f"    {name:<9} {row[name]}"))
    if not rows:
        err.print(Text("there has never been a champion"))


def settings(current: Settings, config: Path) -> None:
    """Print all settings with their names in the environment."""
    table = Table("setting", Column("value", overflow="fold"), "environment", box=None, padding=(0, 2, 0, 0))
    for name, value in current.printable().items():
        table.add_row(name, Text(value), f"RETRAIN_{name.upper().replace('.', '__')}")
    out.print(table)
    err.print(Text(f"settings file: {config} ({'in use' if config.exists() else 'not there'})", "dim"))


def imported(result: ImportResult, store: str) -> None:
    """Say what an import did."""
    err.print(
        Text(
            f"{result.written:,} cells written to {mask(store)}, {result.unchanged:,} were there already "
            f"({result.found:,} found in {mask(result.source)})"
        )
    )
    for reason, count in result.skipped.items():
        err.print(Text(f"  left out, {reason}: {count:,}", "yellow"))


@contextmanager
def counting(doing: str) -> Iterator[Callable[[int], None]]:
    """Show a running count on a terminal; elsewhere nothing."""
    with err.status(doing) as status:
        yield lambda count: status.update(f"{doing}: {count:,}")


@contextmanager
def stages() -> Iterator[None]:
    """Draw a bar for every long stage on a terminal: count, rate, time left. Elsewhere log lines say the same."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from tasks.progress import Step, watched_by

    if not err.is_terminal:
        yield
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}/s"))
    with Progress(*columns, TimeRemainingColumn(), console=err, transient=True) as bar:
        drawn: dict[str, Any] = {}

        def draw(step: Step) -> None:
            if step.doing not in drawn:
                drawn[step.doing] = bar.add_task(step.doing, total=step.total, rate="")
            bar.update(drawn[step.doing], completed=step.done, total=step.total, rate=f"{step.rate:,.0f}")
            if step.done >= step.total:
                bar.remove_task(drawn.pop(step.doing))

        LogLines.bar_is_drawn = True
        try:
            with watched_by(draw, every_seconds=0.2):
                yield
        finally:
            LogLines.bar_is_drawn = False


@contextmanager
def importing() -> Iterator[Callable[[ImportProgress], None]]:
    """Show the progress of an import: a bar on a terminal; elsewhere nothing."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[done]}"))
    with Progress(*columns, TimeRemainingColumn(), console=err, transient=True, disable=not err.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def tell(progress: ImportProgress) -> None:
            if progress.stage not in tasks:
                tasks[progress.stage] = bar.add_task(progress.stage, total=progress.total, done="")
            done = f"{progress.done / 1e6:.1f} MB" if progress.unit == "bytes" else f"{progress.done:,} cells"
            bar.update(tasks[progress.stage], completed=progress.done, total=progress.total, done=done)

        yield tell


def _interval(interval: Interval) -> str:
    return f"{interval.value:.4f} ({interval.low:.4f}-{interval.high:.4f})"
