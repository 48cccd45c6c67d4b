"""What every command begins with: settings read, libraries and logging prepared, the store opened; and ``--json``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from flows import console
from infra.settings.settings import Settings, load_settings

if TYPE_CHECKING:
    from tasks.context import Context

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value on standard output, for programs.")]


def prepared_settings() -> Settings:
    """Read the settings, and prepare by them what libraries read at their import, and the log."""
    from infra.runtime import prepare_environment

    settings = load_settings()
    prepare_environment(settings)
    console.prepare_logging()
    return settings


def open_context(settings: Settings | None = None) -> Context:
    """Open the store, and find out now whether it answers.

    Raises:
        StoreUnreachable: when it does not, with what to do about it.
    """
    from tasks.context import Context

    context = Context.open(settings or prepared_settings())
    context.store.check()
    return context
