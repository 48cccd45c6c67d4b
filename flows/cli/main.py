"""The command line. Importing it loads neither frameworks, nor Prefect, nor MLflow: a command loads what it needs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows import console
from flows.cli import champion, data, display, looks, operate
from flows.cli.common import AsJson, prepared_settings
from flows.cli.prune import prune
from flows.cli.report import report, site
from infra.privacy import keep_files_private, keep_secrets_out_of_logs
from infra.settings.settings import Settings, config_path, load_settings
from validation.errors import DataInvalid, RetrainError, Unreachable
from validation.records import Verdict

if TYPE_CHECKING:
    from validation.records import Night

log = logging.getLogger(__name__)

app = typer.Typer(
    name="retrain",
    help="A malaria cell classifier that keeps itself up to date: nightly retraining, judged on unseen patients.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done, whatever the verdict; 2 usage; 3 data invalid; 4 store, registry or Prefect "
    "unreachable; 1 anything else. Settings come from RETRAIN_... variables and a TOML file: see `retrain settings`.",
)


@app.command()
def run(as_json: AsJson = False) -> None:
    """Run a night, here and now: pull, validate, train both CNNs, judge, promote the better one, report.

    A night over data that has been judged already ends with "nothing new"; a killed night resumes where it was.
    """
    _night(load_settings(), as_json)


@app.command()
def demo(
    cells: Annotated[
        str | None,
        typer.Option(
            help="A folder or zip of real cells, <Class>/<name>.png; 'nlm' is the public archive. "
            "Default: synthetic cells."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Deliver tonight's cells to the demo's own store and run a night over them. Run it again: the next night.

    Afterwards all commands use that store.
    """
    from tasks.context import Context
    from tasks.intake.demo import choose_place, deliver
    from tasks.intake.synthetic_cells import SyntheticPlan

    home = load_settings().home
    own = choose_place(config_path(), home, synthetic=cells is None)
    settings = load_settings()
    console.prepare_logging()
    if not own:
        log.info("using the store of %s: %s", config_path(), settings.store)
    if cells is None:
        with display.counting("drawing synthetic cells") as progress:
            night, count = deliver(Context.open(settings).store, SyntheticPlan(), progress=progress)
        log.info("night %d: %s SYNTHETIC cells have arrived in %s", night, f"{count:,}", settings.store)
    else:
        _import(settings, cells)
    _night(settings, as_json)


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="A folder, a zip, a zip's URL, or 'nlm' (the public archive, 337 MB).")],
    as_json: AsJson = False,
) -> None:
    """Put labelled cells (<Class>/<name>.png) into the store. A second import changes nothing."""
    console.prepare_logging()
    result = _import(load_settings(), source)
    if as_json:
        console.json_line(result)


@app.command()
def predict(
    paths: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")], as_json: AsJson = False
) -> None:
    """Print the champion's probability of Parasitized, and its call, for image files."""
    from tasks.commands.predict import predict as predict_files

    champion, predictions = predict_files(prepared_settings(), paths)
    result = {"champion": champion, "predictions": predictions}
    console.emit(result, as_json, lambda _: display.predictions(champion, predictions))
    bad = sum(prediction.problem is not None for prediction in predictions)
    if bad:
        raise DataInvalid(f"{bad} of {len(predictions)} images could not be scored")


@app.command()
def settings(as_json: AsJson = False) -> None:
    """Print every setting in effect, passwords masked."""
    console.emit(load_settings().printable(), as_json, lambda values: display.settings(values, config_path()))


_COMMANDS: tuple[Callable[..., None], ...] = (
    *(champion.champion, champion.history, champion.rollback, champion.promote, champion.approve, champion.reject),
    *(report, site, looks.looks, data.validate, data.quarantine),
    *(operate.up, operate.notify, operate.backup, operate.restore, prune),
)
for _command in _COMMANDS:
    app.command()(_command)


def main() -> None:
    """Run the command line; end with one clear line, never a traceback, for anything a user can cause."""
    keep_files_private()
    keep_secrets_out_of_logs()
    try:
        app(standalone_mode=True)
    except RetrainError as error:
        console.error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        console.error(RetrainError("stopped", "what was finished is kept: run it again to resume"))
        sys.exit(130)
    except Exception as error:
        console.unexpected(error)
        sys.exit(1)


def _night(settings: Settings, as_json: bool) -> None:
    from infra.prefect_server import prefect_server
    from infra.runtime import prepare_environment

    prepare_environment(settings)
    console.prepare_logging()
    _check(settings)
    with prefect_server(settings), display.stages():
        night = _run_flow()
    console.emit(night, as_json, display.verdict)
    if night.verdict is Verdict.INVALID_DATA:
        raise SystemExit(DataInvalid.exit_code)


def _check(settings: Settings) -> None:
    """Report mistakes in the settings before anything is started."""
    from tasks.context import Context
    from tasks.training.specs import member_specs

    for model in settings.training.models:
        member_specs(settings, model, "")
    Context.open(settings).store.check()


def _run_flow() -> Night:
    # Only now: Prefect reads its environment when it is imported.
    import httpx
    from prefect.exceptions import PrefectHTTPStatusError

    from flows.retrain import retrain
    from validation.records import Night

    console.silence_prefect()
    try:
        return Night.model_validate(retrain())
    except (httpx.TransportError, PrefectHTTPStatusError) as error:
        # These come from Prefect's client and do not say what to do; the night may even be over.
        raise Unreachable(
            f"Prefect's server did not answer in the middle of the night: {type(error).__name__}",
            "is it running, and is there space on its disk? nothing is lost: run the night again, it resumes",
        ) from error


def _import(settings: Settings, source: str) -> Any:
    from infra.store.folder import FolderStore
    from tasks.context import Context
    from tasks.intake.demo import refuse_synthetic
    from tasks.intake.import_cells import import_cells

    context = Context.open(settings)
    store = context.store
    if isinstance(store, FolderStore):
        store.root.mkdir(parents=True, exist_ok=True)
    store.check()
    refuse_synthetic(store)
    with display.importing() as progress:
        result = import_cells(source, store, context.workspace, progress=progress)
    display.imported(result, settings.store)
    return result
