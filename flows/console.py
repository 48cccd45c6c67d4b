"""What the command line shows: facts on standard output, progress and trouble on standard error."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
import tempfile
import traceback
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from rich.console import Console
from rich.text import Text

from validation.errors import RetrainError
from validation.redaction import mask

if TYPE_CHECKING:
    pass

OURS = ("flows", "tasks", "infra", "validation")
# soft_wrap: a path or an id that is cut in two cannot be copied.
out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)


class LogLines(logging.StreamHandler[Any]):
    """Plain lines, never wrapped: a path that is cut in two cannot be copied."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(logging.Formatter("%(asctime)s  %(message)s", datefmt="%H:%M:%S"))

    # While a bar is drawn, lines go above it, and those that say what it shows are left out.
    bar_is_drawn = False

    def emit(self, record: logging.LogRecord) -> None:
        if not self.bar_is_drawn:
            super().emit(record)
        elif not getattr(record, "is_progress", False):
            err.print(Text(self.format(record)))


def prepare_logging() -> None:
    """Show what our own modules log, one short line each, on standard error."""
    handler = LogLines()
    for name in OURS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        if not any(isinstance(known, LogLines) for known in logger.handlers):
            logger.addHandler(handler)


def silence_prefect() -> None:
    """Keep Prefect's own lines out of the terminal; its pages have them all."""
    for handler in logging.getLogger().handlers:
        if type(handler).__module__.startswith("prefect"):
            handler.setLevel(logging.CRITICAL)


def json_line(value: Any) -> None:
    """Print one JSON value on a line of its own."""
    sys.stdout.write(json.dumps(value, default=_plain, ensure_ascii=False) + "\n")
    # A program that waits for this line gets it now: a pipe would keep it until the command ends.
    sys.stdout.flush()


def error(problem: RetrainError) -> None:
    """Print an error and what to do about it."""
    err.print(Text.assemble(("error: ", "bold red"), mask(problem.message)))
    if problem.hint:
        err.print(Text(f"  {mask(problem.hint)}"))


def unexpected(problem: Exception) -> None:
    """Print one line about an error that nobody foresaw, and keep its traceback in a file."""
    with tempfile.NamedTemporaryFile("w", prefix="retrain-error-", suffix=".txt", delete=False) as file:
        file.write(mask("".join(traceback.format_exception(problem))))
    first_line = (str(problem).strip().splitlines() or [""])[0][:300]
    error(RetrainError(f"unexpected {type(problem).__name__}: {first_line}", f"the traceback is in {file.name}"))


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)
