"""Commands for what runs unattended: ``retrain up``, ``notify``, ``backup``, ``restore``."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from flows import console
from flows.cli import display
from flows.cli.common import AsJson, prepared_settings
from infra.settings.settings import load_settings

log = logging.getLogger(__name__)


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(up)
    app.command()(notify)
    app.command()(backup)
    app.command()(restore)


def up(as_json: AsJson = False) -> None:
    """Run everything on this machine: Prefect's server and page, workers, deployments with schedules, alerts.

    It stays until Ctrl-C (or SIGTERM) and then ends all of it. Started again it goes on where it was.
    """
    from flows.unattended.signals import ignore_signals, interrupt_on_signals
    from flows.unattended.up import LocalDeployment
    from infra.local.up_lock import machine_lock

    settings = prepared_settings()
    with machine_lock(settings.home):
        machine = LocalDeployment(settings)
        interrupt_on_signals()
        try:
            machine.start()
            addresses = machine.addresses()
            if as_json:
                console.json_line(addresses)
            else:
                display.facts(addresses)
            log.info("ready; Ctrl-C ends all of it")
            with suppress(KeyboardInterrupt):
                machine.watch()
        finally:
            # Once is enough: a second Ctrl-C must not leave half of it behind.
            ignore_signals()
            log.info("stopping")
            machine.stop()
    log.info("stopped")


def notify(
    listen: Annotated[
        bool, typer.Option(help="Stay, and notify whenever the queue of RETRAIN_EVENTS__QUEUE tells of new cells.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say that new cells have arrived: a night begins soon, one for all notices until then.

    Needs a Prefect server with the deployment retrain/nightly (PREFECT_API_URL, or `retrain up` on this machine).
    """
    from flows.unattended.notify import listen as listen_to
    from flows.unattended.notify import notify as notify_once
    from flows.unattended.notify import server_of

    settings = prepared_settings()
    server = server_of(settings)
    if listen:
        listen_to(server, settings)
        return
    run = notify_once(server, settings)
    answer = {"run": run["name"], "id": run["id"], "at": run["expected_start_time"]}
    if as_json:
        console.json_line(answer)
    else:
        display.facts(answer)


def backup(
    folder: Annotated[Path, typer.Argument(help="A new folder; it is made.")],
    as_json: AsJson = False,
) -> None:
    """Copy what this machine holds (store, registry, Prefect's database, settings) into a folder. Nights may go on."""
    from infra.backup import back_up

    console.prepare_logging()
    manifest = back_up(load_settings(), folder)
    if as_json:
        console.json_line(manifest)
    else:
        display.facts({"made": manifest["made"], **manifest["saved"], "files": len(manifest["files"])})


def restore(
    folder: Annotated[Path, typer.Argument(help="What `retrain backup` made.")],
    as_json: AsJson = False,
) -> None:
    """Put a backup back where it came from. What is there has to be moved away first; nothing is overwritten."""
    from infra.backup import restore as put_back

    console.prepare_logging()
    manifest = put_back(load_settings(), folder)
    if as_json:
        console.json_line(manifest)
    else:
        display.facts({"made": manifest["made"], **manifest["saved"]})
