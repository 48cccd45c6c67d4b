"""Who acts: the Prefect run that this process carries out, else the person at this machine."""

from __future__ import annotations

from infra.provenance import person


def initiator() -> str:
    """Return what the history names as who changed the champion."""
    from prefect.runtime import flow_run

    name = flow_run.name
    return f"Prefect run {name} ({flow_run.flow_name}) of {person()}" if name else person()
