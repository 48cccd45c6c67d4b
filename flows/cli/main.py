"""The command line. Importing it loads neither frameworks, nor Prefect, nor MLflow: a command loads what it needs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows import console
from flows.cli import champion, data, display, looks, operate
from flows.cli.common import AsJson, named_path, prepared_settings
from flows.cli.prune import prune
from flows.cli.report import compare, report, site
from infra.environment import prefect_api_url
from infra.privacy import keep_files_private, keep_secrets_out_of_logs
from infra.settings.settings import Settings, config_path, load_settings
from validation.errors import DataInvalid, RetrainError, Unreachable, UsageError
from validation.records import Verdict

if TYPE_CHECKING:
    from infra.store.base import Store
    from tasks.intake.import_cells import ImportResult, OpenedCells
    from validation.records import Night

log = logging.getLogger(__name__)

STOPPED = 130  # the exit code that Typer makes of Ctrl-C

ClassNamed = Annotated[
    list[str] | None,
    typer.Option(
        "--class",
        metavar="NAME=CLASS",
        help="What a folder or label of another name is, for instance infected=Parasitized.",
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        parser=named_path,
        metavar="FILE",
        help="A CSV or Parquet file of labels, for images that are not in class folders.",
    ),
]
Columns = Annotated[
    str, typer.Option(metavar="IMAGE,LABEL", help="The columns of that file: the image's file, its label.")
]

app = typer.Typer(
    name="retrain",
    help="A malaria cell classifier that keeps itself up to date: nightly retraining, judged on unseen patients.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done, whatever the verdict; 2 usage; 3 data invalid; 4 store, registry or Prefect "
    "unreachable; 1 anything else. Settings come from RETRAIN_... variables and a TOML file: see `retrain settings`.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from infra.provenance import version

        typer.echo(f"retrain {version()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version, and exit.")
    ] = False,
) -> None:
    del version


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
    classes: ClassNamed = None,
    labels: Labels = None,
    columns: Columns = "image,label",
    as_json: AsJson = False,
) -> None:
    """Deliver tonight's cells to the demo's own store and run a night over them. Run it again: the next night.

    Afterwards all commands use that store.
    """
    from tasks.context import Context
    from tasks.intake.demo import choose_place, deliver
    from tasks.intake.synthetic_cells import SyntheticPlan

    settings = prepared_settings()

    def place() -> Settings:
        own = choose_place(config_path(), settings.home, synthetic=cells is None)
        chosen = load_settings()
        if not own:
            log.info("using the store of %s: %s", config_path(), chosen.store)
        return chosen

    if cells is None:
        settings = place()
        with display.counting("drawing synthetic cells") as progress:
            night, count = deliver(Context.open(settings).store, SyntheticPlan(), progress=progress)
        log.info("night %d: %s SYNTHETIC cells have arrived in %s", night, f"{count:,}", settings.store)
    else:
        with _opened(settings, cells, classes, labels, columns) as opened:
            # Only now: a typing mistake changes nothing.
            settings = place()
            _copy(settings, opened)
    _night(settings, as_json)


@app.command("import")
def import_(
    source: Annotated[
        str,
        typer.Argument(help="A folder, a zip, its URL, a bucket (s3://...), or 'nlm' (the public archive, 337 MB)."),
    ],
    classes: ClassNamed = None,
    labels: Labels = None,
    columns: Columns = "image,label",
    as_json: AsJson = False,
) -> None:
    """Put labelled cells (<Class>/<name>.png) into the store. A second import changes nothing."""
    settings = prepared_settings()
    # A bucket that cannot be reached should say so before a long download, not after it.
    _ready(settings, make=False)
    with _opened(settings, source, classes, labels, columns) as opened:
        result = _copy(settings, opened)
    if as_json:
        console.json_line(result)


@app.command()
def predict(
    paths: Annotated[
        list[Path], typer.Argument(parser=named_path, metavar="PATH...", help="Image files, or folders of them.")
    ],
    as_csv: Annotated[bool, typer.Option("--csv", help="Print one CSV row for each image, for spreadsheets.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the champion's probability of Parasitized, its call, and doubts about the image, for image files."""
    from tasks.commands.predict import predict as predict_files

    result = predict_files(prepared_settings(), paths)
    console.emit(result, as_json, display.predictions_csv if as_csv else display.predictions)
    bad = sum(prediction.problem is not None for prediction in result.predictions)
    if bad:
        raise DataInvalid(f"{bad} of {len(result.predictions)} images could not be scored", "the reason is beside each")


@app.command()
def settings(as_json: AsJson = False) -> None:
    """Print every setting in effect: value, source, default, meaning; passwords masked."""
    loaded = load_settings()
    console.emit(loaded.printable(), as_json, lambda _: display.settings(loaded.described(), config_path()))


_COMMANDS: tuple[Callable[..., None], ...] = (
    *(champion.champion, champion.history, champion.rollback, champion.promote, champion.approve, champion.reject),
    champion.rebuild_registry,
    *(report, compare, site, looks.looks, data.validate, data.quarantine),
    *(operate.up, operate.devices, operate.notify, operate.backup, operate.restore, prune),
)
_EXAMPLES = {
    "run": "",
    "demo": "--cells cells/ --class infected=Parasitized",
    "import": "images/ --labels labels.csv --columns file,stage --class 1=Parasitized --class 0=Uninfected",
    "predict": "new-cells/ --csv > calls.csv",
    "settings": "--json",
    "champion": '--at "2026-01-31 12:00"',
    "history": "--json",
    "rollback": '--why "ring forms are missed"',
    "promote": 'latest --why "reviewed by hand"',
    "approve": 'latest --name "Dr. Ada Lovelace" --why "report reviewed"',
    "reject": 'latest --name "Dr. Ada Lovelace" --why "too few patients"',
    "rebuild-registry": '3f9a61c07be2 --why "the disk was lost; SHA-256 from the last report"',
    "report": "latest",
    "compare": "latest 3f9a61c0",
    "site": "--port 8765",
    "looks": "--json",
    "validate": "",
    "quarantine": '--reason "out of focus" --all',
    "up": "",
    "devices": "--json",
    "notify": "--listen",
    "backup": "/backups/2026-11-23",
    "restore": "/backups/2026-11-23",
    "prune": "--dry-run",
}
for _command in _COMMANDS:
    app.command()(_command)
for _registered in app.registered_commands:
    _name = str(_registered.name or getattr(_registered.callback, "__name__", "")).replace("_", "-")
    _registered.epilog = f"Example: retrain {_name} {_EXAMPLES[_name]}".rstrip()


def main() -> None:
    """Run the command line; end with one clear line, never a traceback, for anything a user can cause."""
    keep_files_private()
    keep_secrets_out_of_logs()
    console.show_any_text()
    try:
        app(standalone_mode=True)
    except RetrainError as error:
        console.error(error)
        sys.exit(error.exit_code)
    except SystemExit as ended:
        if ended.code == STOPPED:
            console.error(RetrainError("stopped", "what was finished is kept: run it again to resume"))
        raise
    except Exception as error:
        console.unexpected(error)
        sys.exit(1)


def _night(settings: Settings, as_json: bool) -> None:
    from infra.prefect_server import prefect_server
    from infra.runtime import keep_prefect_from_files, prepare_environment

    console.prepare_logging()
    prepare_environment(settings)
    _check(settings)
    with prefect_server(settings), display.stages():
        keep_prefect_from_files(settings)
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
        if (ended_it := _reported(error)) is not None:
            raise ended_it from error
        answer = f"answered {error.response.status_code}" if isinstance(error, PrefectHTTPStatusError) else ""
        raise Unreachable(
            f"Prefect's server did not answer in the middle of the night: {answer or type(error).__name__}",
            "is it running, and is there space on its disk? nothing is lost: run the night again, it resumes",
        ) from error
    except RuntimeError as error:
        # So Prefect's client says that there is no server from the beginning.
        if "Failed to reach API" not in str(error):
            raise
        url = prefect_api_url()
        raise Unreachable(
            f"no Prefect server answers at {url}",
            "start it, or unset PREFECT_API_URL: a night by hand then starts one of its own",
        ) from error


def _reported(error: BaseException) -> RetrainError | None:
    """Return what had ended the night already, if Prefect's server failed when it was to be told of it."""
    context = error.__context__
    while context is not None and not isinstance(context, RetrainError):
        context = context.__context__
    return context


@contextmanager
def _opened(
    settings: Settings, source: str, classes: list[str] | None, labels: Path | None, columns: str
) -> Iterator[OpenedCells]:
    """Open the source of an import, by the options of the command."""
    from pydantic import TypeAdapter, ValidationError

    from infra.local.files import Workspace
    from infra.settings.groups import ClassNames
    from infra.store.opening import open_store
    from tasks.intake.import_cells import Labelling, open_cells

    try:
        named = TypeAdapter(ClassNames).validate_python(",".join(classes or ()))
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UsageError(f"--class: {reason}", "for instance --class infected=Parasitized") from None
    image, _, label = columns.partition(",")
    labelling = Labelling({**settings.classes, **named}, labels, (image.strip(), label.strip()))
    bucket = partial(open_store, endpoint=settings.store_endpoint, region=settings.store_region, wire=settings.wire)
    with (
        display.importing() as progress,
        open_cells(source, Workspace(settings.home), labelling=labelling, bucket=bucket, progress=progress) as opened,
    ):
        yield opened


def _ready(settings: Settings, *, make: bool = True) -> Store:
    """Open the store of an import, and check that real cells may go there; ``make`` its folder, if it is one."""
    from infra.store.folder import FolderStore
    from tasks.context import Context
    from tasks.intake.demo import refuse_synthetic

    store = Context.open(settings).store
    if isinstance(store, FolderStore):
        if not make and not store.root.exists():
            return store  # a typing mistake in the source leaves no folder behind
        store.root.mkdir(parents=True, exist_ok=True)
    store.check()
    refuse_synthetic(store)
    return store


def _copy(settings: Settings, opened: OpenedCells) -> ImportResult:
    result = opened.copy_to(_ready(settings))
    display.imported(result, settings.store)
    return result
