"""The commands for unattended operation: ``retrain up``, ``devices``, ``notify``, ``backup``, ``restore``."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from flows import console
from flows.cli import display
from flows.cli.common import AsJson, named_path, prepared_settings
from infra.settings.settings import config_path, load_settings
from validation.errors import TrainingFailed

log = logging.getLogger(__name__)


def up(as_json: AsJson = False) -> None:
    """Run everything on this machine: Prefect's server and page, workers, deployments with schedules, alerts.

    It runs until Ctrl-C (or SIGTERM) and then stops all of it. Started again, it resumes where it was.
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
            console.emit(addresses, as_json, display.facts)
            log.info("ready, and waiting for the next night (%s); Ctrl-C stops all of it", addresses["next_night"])
            with suppress(KeyboardInterrupt):
                machine.watch()
        finally:
            # A second Ctrl-C must not leave half of it running.
            ignore_signals()
            log.info("stopping")
            machine.stop()
    log.info("stopped")


def devices(as_json: AsJson = False) -> None:
    """Say what each CNN trains on here, by its framework's own word, and why not on a GPU.

    With RETRAIN_TRAINING__UNUSABLE_GPU=fail it ends with exit 1 where a GPU is here and a framework does not use it.
    """
    from tasks.training.device import UNUSED_HINT, device_here

    training = load_settings().training
    found = {model: device_here(model) for model in training.models}
    console.emit(found, as_json, display.devices)
    wrong = {model: said.get("error") or said["unused_gpu"] for model, said in found.items()}
    if training.unusable_gpu == "fail" and any(wrong.values()):
        what = "; ".join(f"{model}: {why}" for model, why in wrong.items() if why)
        raise TrainingFailed(f"RETRAIN_TRAINING__UNUSABLE_GPU is fail, and {what}", UNUSED_HINT)


def notify(
    listen: Annotated[
        bool, typer.Option(help="Stay, and notify whenever the queue RETRAIN_EVENTS__QUEUE reports new cells.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Report that new cells have arrived: a night begins soon, one for all notices until then.

    Needs a Prefect server with the deployment retrain/nightly (PREFECT_API_URL, or `retrain up` on this machine).
    """
    from flows.unattended import notify as notices

    settings = prepared_settings()
    server = notices.server_of(settings)
    if listen:
        notices.listen(server, settings)
        return
    run = notices.notify(server, settings)
    console.emit({"run": run["name"], "id": run["id"], "at": run["expected_start_time"]}, as_json, display.facts)


def backup(
    folder: Annotated[Path, typer.Argument(parser=named_path, metavar="FOLDER", help="A new folder; it is created.")],
    as_json: AsJson = False,
) -> None:
    """Copy this machine's state (store, registry, Prefect's database, settings) to a folder, even during a night."""
    from infra.backup import back_up

    console.prepare_logging()
    manifest = back_up(load_settings(), folder)
    console.emit(manifest, as_json, lambda _: _print_manifest(manifest, files=len(manifest["files"])))


def restore(
    folder: Annotated[Path, typer.Argument(parser=named_path, metavar="FOLDER", help="What `retrain backup` made.")],
    as_json: AsJson = False,
) -> None:
    """Put a backup back in place. Move away what is there first; nothing is overwritten."""
    from infra.backup import restore as put_back

    console.prepare_logging()
    # On a machine that was lost, the settings file is among what comes back, and says where the rest goes.
    lost = folder / "settings" if not config_path().exists() and (folder / "settings").is_file() else None
    console.emit(put_back(load_settings(lost), folder), as_json, _print_manifest)


def _print_manifest(manifest: dict[str, Any], **more: Any) -> None:
    display.facts({"made": manifest["made"], **manifest["saved"], **more})
