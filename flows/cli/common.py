"""What every command begins with: settings, prepared libraries, logging, the open store; and the option ``--json``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows import console
from infra.settings.settings import Settings, load_settings
from validation.errors import UsageError

if TYPE_CHECKING:
    from infra.registry.registry import Registry
    from tasks.context import Context

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value on standard output, for programs.")]


def named_path(text: str) -> Path:
    """Return the path of an argument; an empty one, as an unset variable gives it, is not the current folder.

    Raises:
        UsageError: when it is empty.
    """
    if not text.strip():
        raise UsageError("a file or folder is expected, and its name is empty", "for the current folder say .")
    return Path(text)


def prepared_settings() -> Settings:
    """Read the settings; prepare logging, and by the settings what libraries read when they are imported."""
    from infra.runtime import keep_prefect_from_files, prepare_environment

    settings = load_settings()
    prepare_environment(settings)
    keep_prefect_from_files(settings)
    console.prepare_logging()
    return settings


def open_context(settings: Settings | None = None) -> Context:
    """Open the store and check that it answers.

    Raises:
        StoreUnreachable: when it does not, with what to do about it.
    """
    from tasks.context import Context

    context = Context.open(settings or prepared_settings())
    context.store.check()
    return context


def open_registry() -> tuple[Context, Registry]:
    """Open store and registry, for the commands that need both."""
    from infra.registry.registry import Registry

    context = open_context()
    return context, Registry(context.settings)
