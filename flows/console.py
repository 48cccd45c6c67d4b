"""The terminal: results on standard output, progress, logs and errors on standard error; JSON for programs."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel
from rich.console import Console, ConsoleOptions
from rich.segment import Segment
from rich.text import Text

from validation.errors import RetrainError
from validation.redaction import mask, printable

PACKAGES = ("flows", "tasks", "infra", "validation")
T = TypeVar("T")


class _Terminal(Console):
    """Escapes in all that it prints what would act on a terminal: keys, reasons and errors come from outside."""

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=lines(segment.text))


def lines(text: str) -> str:
    """Return untrusted text of several lines, each as ``printable`` makes it."""
    return "\n".join(map(printable, text.split("\n")))


# soft_wrap: a path or an id that is cut in two cannot be copied.
out = _Terminal(soft_wrap=True, highlight=False, markup=False)
err = _Terminal(stderr=True, soft_wrap=True, highlight=False, markup=False)


def emit(value: T, as_json: bool, render: Callable[[T], None]) -> None:
    """Print a command's result: one JSON value for a program, or what ``render`` shows to a person."""
    (json_line if as_json else render)(value)


def json_line(value: Any) -> None:
    """Print one JSON value on its own line."""
    text = json.dumps(value, default=_plain, ensure_ascii=False)
    # What JSON need not escape: what a terminal would obey, and letters that this one cannot show.
    if not text.isprintable() or not _can_be_shown(text):
        text = json.dumps(value, default=_plain).replace("\x7f", r"\u007f")
    sys.stdout.write(text + "\n")
    # A pipe would buffer the line until the command ends; its reader waits for it.
    sys.stdout.flush()


def show_any_text() -> None:
    """Let a terminal that cannot show a letter show its escape, instead of ending the command."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Where standard output was replaced below Python, by a pipe in place of a file, it asks for its position.
        with contextlib.suppress(OSError):
            sys.stdout.reconfigure(errors="backslashreplace")  # as Python itself does for standard error


def _can_be_shown(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)


def error(problem: RetrainError) -> None:
    """Print an error and its hint."""
    err.print(Text.assemble(("error: ", "bold red"), mask(problem.message)))
    if problem.hint:
        err.print(Text(f"  {mask(problem.hint)}"))


def unexpected(problem: Exception) -> None:
    """Print an unforeseen error in one line, and save its traceback to a file."""
    with tempfile.NamedTemporaryFile("w", prefix="retrain-error-", suffix=".txt", delete=False) as file:
        file.write(mask("".join(traceback.format_exception(problem))))
    first_line = (str(problem).strip().splitlines() or [""])[0][:300]
    error(RetrainError(f"unexpected {type(problem).__name__}: {first_line}", f"the traceback is in {file.name}"))


class LogHandler(logging.StreamHandler[Any]):
    """Writes one unwrapped line per record; above a progress bar while one is drawn, without the lines it replaces."""

    # Shared by the handlers of all packages: there is one terminal.
    bar_is_drawn: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(logging.Formatter("%(asctime)s  %(message)s", datefmt="%H:%M:%S"))

    def format(self, record: logging.LogRecord) -> str:
        return lines(super().format(record))

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr  # of now: whoever runs several commands in a process may have replaced it
        if not self.bar_is_drawn:
            super().emit(record)
        elif not getattr(record, "is_progress", False):
            err.print(Text(self.format(record)))


def prepare_logging() -> None:
    """Show what the project's packages log, one line per record, on standard error."""
    handler = LogHandler()
    for logger in map(logging.getLogger, PACKAGES):
        logger.setLevel(logging.INFO)
        logger.propagate = False
        if not any(isinstance(known, LogHandler) for known in logger.handlers):
            logger.addHandler(handler)


def silence_prefect() -> None:
    """Keep Prefect's own log lines off the terminal; its pages have them all."""
    for handler in logging.getLogger().handlers:
        if type(handler).__module__.startswith("prefect"):
            handler.setLevel(logging.CRITICAL)
