"""What every flow begins with: settings, prepared libraries, the open store; and who acts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from infra.privacy import redact_exceptions
from infra.provenance import person
from infra.runtime import prepare_environment
from infra.settings.settings import Settings, load_settings
from tasks.context import Context


@contextmanager
def opened(settings: Settings | None = None) -> Iterator[Context]:
    """Prepare this process by ``settings`` (default: this machine's) and open the store; redact what escapes."""
    with redact_exceptions():
        settings = settings or load_settings()
        prepare_environment(settings)
        yield Context.open(settings)


def initiator() -> str:
    """Return what the history records as the author of a change: this Prefect run, else the person at this machine."""
    from prefect.runtime import flow_run

    name = flow_run.name
    return f"Prefect run {name} ({flow_run.flow_name}) of {person()}" if name else person()
