"""How the commands render their results on standard output, and progress on standard error."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import progress
from rich.text import Text

from flows import console
from validation.records import Interval, Verdict
from validation.redaction import mask, printable

if TYPE_CHECKING:
    from tasks.commands.compare_decisions import Comparison
    from tasks.commands.predict import Predictions
    from tasks.intake.download import ImportProgress
    from tasks.intake.import_cells import ImportResult
    from validation.records import Night

COLOURS = {
    Verdict.PROMOTED: "bold green",
    Verdict.KEPT: "bold blue",
    Verdict.UNDECIDED: "bold yellow",
    Verdict.AWAITING_APPROVAL: "bold yellow",
    Verdict.CHAMPION_UNUSABLE: "bold red",
    Verdict.NOTHING_NEW: "bold",
    Verdict.INVALID_DATA: "bold red",
}


def verdict(night: Night) -> None:
    """Print a night's verdict in one line, its headline numbers, and where its report is."""
    numbers = [f"{name.replace('_', ' ')} {_interval(value)}" for name, value in night.metrics.items() if value]
    if numbers:
        console.out.print(Text(f"{night.challenger_model} on judging patients: {'; '.join(numbers)}"))
    for model, why in night.failed_trainings.items():
        console.out.print(Text(f"{model} could not be trained, and the night continued without it: {why}", "bold red"))
    for model, why in night.unused_gpus.items():
        console.out.print(Text(f"{model} was trained on the CPU: {why}", "yellow"))
    if night.field:
        console.out.print(Text(night.field.sentence, "bold red" if night.field.worse else ""))
    if night.synthetic:
        console.out.print(Text("These cells are SYNTHETIC: the figures say nothing about real blood.", "yellow"))
    console.out.print(Text.assemble((night.verdict.value.upper(), COLOURS[night.verdict]), f"  {night.sentence}"))
    if night.report:
        console.out.print(Text(f"report: {night.report}"))


def devices(found: Mapping[str, Mapping[str, str]]) -> None:
    """Print what each CNN trains on here, and why not on a GPU."""
    for model, said in found.items():
        if "error" in said:
            console.out.print(Text(f"{model}: {said['error']} ({said['hint']})", "bold red"))
            continue
        # A GPU that is not used is worse than none.
        why, colour = (said["unused_gpu"], "yellow") if said["unused_gpu"] else (said["why_no_gpu"], "")
        console.out.print(Text(f"{model}: {said['device']}{f' ({why})' if why else ''}", colour))


def predictions(result: Predictions) -> None:
    """Print one line per image, its doubts below, then one line per patient."""
    for row in result.predictions:
        if row.problem:
            console.out.print(Text(f"{'-':>8}  {'not scored':<12} {row.path}  ({row.problem})", "red"))
            continue
        console.out.print(Text(f"{row.probability:8.6f}  {row.call:<12} {row.path}"))
        for doubt in row.doubts:
            console.out.print(Text(f"{'':8}  do not trust: {doubt}", "yellow"))
    for patient in result.patients:
        counts = f"{patient.parasitized} Parasitized, {patient.uninfected} Uninfected"
        rest = {"not to be trusted": patient.doubtful, "not scored": patient.not_scored}
        more = "".join(f", {count} {what}" for what, count in rest.items() if count)
        console.out.print(Text(f"patient {patient.patient or 'unknown'}: {counts}{more}", "bold"))
    _predicted_by(result)


def predictions_csv(result: Predictions) -> None:
    """Print the predictions as CSV."""
    names = ("path", "patient", "probability", "call", "doubts", "problem")
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(names)
    for row in result.predictions:
        values = ("; ".join(value) if isinstance(value, tuple) else value for value in astuple(row))
        table.writerow(printable(value) if isinstance(value, str) else value for value in values)
    _predicted_by(result)


def _predicted_by(result: Predictions) -> None:
    champion = result.champion
    used = f"champion: version {champion.version} ({champion.model}), threshold {champion.threshold:.6f}"
    console.err.print(Text(f"{used}; focus, stain and size are compared with {result.compared_with}", "dim"))
    if result.synthetic:
        console.err.print(
            Text("warning: this champion was trained on SYNTHETIC cells: its calls say nothing of real blood", "yellow")
        )


def facts(values: Mapping[str, Any]) -> None:
    """Print named facts, one per line; those that are None are left console.out."""
    for name, value in values.items():
        parts = value if isinstance(value, dict) else {name: value}
        for part, fact in parts.items():
            if fact is not None:
                shown = _interval(Interval.model_validate(fact)) if isinstance(fact, dict) else printable(fact)
                shown = "none" if fact == [] else shown
                console.out.print(Text(f"{part.replace('_', ' '):<18} {shown}"))


def history(rows: Sequence[dict[str, Any]]) -> None:
    """Print the changes of the champion, oldest first: each on one line, its reason and evidence below."""
    for row in rows:
        change = f": version {row['from'] or 'none'} -> {row['to']}" if row["to"] is not None else ""
        time = f"{row['at'][:19].replace('T', ' ')} UTC  "
        console.out.print(
            Text.assemble((time, "bold"), row["action"], change, (f"  by {printable(row['who'])}", "dim"))
        )
        for name in ("why", "checked", "decision", "report"):
            if row[name]:
                console.out.print(Text(f"    {name:<9} {printable(row[name])}"))
    if not rows:
        console.err.print(Text("there has never been a champion"))


def comparison(result: Comparison) -> None:
    """Print two challengers on the same cells, and their difference: a line for each metric."""
    judged = f"{result.patients:,} patients and {result.cells:,} cells that both judged"
    console.out.print(Text(f"decision {result.later} minus decision {result.earlier}, on {judged}"))
    if result.left_out:
        console.out.print(Text(f"{result.left_out:,} cells that only one of them judged are left out", "yellow"))
    for name, values in result.metrics.items():
        shown = " -> ".join(f"{value.value:.4f}" if value else "not defined" for value in values)
        difference = result.differences.get(name)
        change = f"  {difference.value:+.4f} ({difference.low:+.4f} to {difference.high:+.4f})" if difference else ""
        console.out.print(Text(f"{name.replace('_', ' '):<18} {shown}{change}"))
    console.err.print(
        Text("95% intervals by patient, for one pair chosen beforehand; nothing is promoted by it", "dim")
    )


def settings(described: Iterable[tuple[str, str, str, str, str]], config: Path) -> None:
    """Print every setting on a line of its own, where its value is from, its default, variable and meaning below."""
    for name, value, default, source, meaning in described:
        console.out.print(Text.assemble((name, "bold"), f" = {value}", (f"  ({source})", "dim")))
        variable = f"RETRAIN_{name.upper().replace('.', '__')}"
        is_default = f", default {default}" if default and source != "default" else ""
        console.out.print(Text(f"    {variable}{is_default}: {meaning}", "dim"))
    console.err.print(Text(f"settings file: {config} ({'in use' if config.exists() else 'not found'})", "dim"))


def imported(result: ImportResult, store: str) -> None:
    """Print what an import wrote and what it left console.out."""
    counts = f"{result.written:,} cells written to {mask(store)}, {result.unchanged:,} were there already"
    console.err.print(Text(f"{counts} ({result.found:,} found in {mask(result.source)})"))
    for reason, count in result.skipped.items():
        console.err.print(Text(f"  left out, {reason}: {count:,}", "yellow"))


@contextmanager
def counting(doing: str) -> Iterator[Callable[[int], None]]:
    """Show a running count on a terminal, nothing otherwise."""
    with console.err.status(doing) as status:
        yield lambda count: status.update(f"{doing}: {count:,}")


class _Bars:
    """One progress bar per name, on standard error; ``note`` is shown beside it."""

    def __init__(self, share: progress.ProgressColumn, note: str, *, disable: bool = False) -> None:
        name, bar, left = "{task.description}", progress.BarColumn(), progress.TimeRemainingColumn()
        columns: tuple[progress.ProgressColumn | str, ...] = (name, bar, share, note, left)
        self.progress = progress.Progress(*columns, console=console.err, transient=True, disable=disable)
        self._drawn: dict[str, Any] = {}

    def draw(self, name: str, done: int, total: int | None, note: str) -> None:
        if name not in self._drawn:
            self._drawn[name] = self.progress.add_task(name, total=total, note="")
        self.progress.update(self._drawn[name], completed=done, total=total, note=note)

    def remove(self, name: str) -> None:
        self.progress.remove_task(self._drawn.pop(name))


@contextmanager
def stages() -> Iterator[None]:
    """Draw a bar for every long stage on a terminal: count, rate, time left. Otherwise log lines say the same."""
    from tasks.progress import Step, watched_by

    if not console.err.is_terminal:
        yield
        return
    bars = _Bars(progress.MofNCompleteColumn(), "{task.fields[note]}/s")

    def draw(step: Step) -> None:
        bars.draw(step.doing, step.done, step.total, f"{step.rate:,.0f}")
        if step.done >= step.total:
            bars.remove(step.doing)

    console.LogHandler.bar_is_drawn = True
    try:
        with bars.progress, watched_by(draw, every_seconds=0.2):
            yield
    finally:
        console.LogHandler.bar_is_drawn = False


@contextmanager
def importing() -> Iterator[Callable[[ImportProgress], None]]:
    """Show the progress of an import: a bar on a terminal, nothing otherwise."""
    bars = _Bars(progress.TaskProgressColumn(), "{task.fields[note]}", disable=not console.err.is_terminal)

    def draw(at: ImportProgress) -> None:
        bars.draw(
            at.stage, at.done, at.total, f"{at.done / 1e6:.1f} MB" if at.unit == "bytes" else f"{at.done:,} cells"
        )

    with bars.progress:
        yield draw


def _interval(interval: Interval) -> str:
    return f"{interval.value:.4f} ({interval.low:.4f}-{interval.high:.4f})"
