"""Calls to MLflow: its errors are translated, temporary ones retried, its output silenced; what its pages show."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from infra.inherited import MLFLOW
from infra.local.files import sync
from infra.provenance import code_revision, person
from validation.errors import RegistryUnreachable
from validation.redaction import mask

T = TypeVar("T")

log = logging.getLogger(__name__)

# Where MLflow's tables have absolute paths.
_PATHS = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}

TRIES = 8
# Temporary errors: SQLite lets one process write at a time and fails for others at once; and when two processes set an
# alias for the first time at once, MLflow inserts it twice and reports the database's error to the second.
TEMPORARY = (
    "database is locked",
    "UniqueViolation",
    "UNIQUE constraint failed",
    "Duplicate entry",
    "deadlock detected",
)


def call_mlflow(uri: str, call: Callable[[], T]) -> T:
    """Return ``call()``, with retries; raises RegistryUnreachable when MLflow does not answer or refuses."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    for retries_left in reversed(range(TRIES)):
        try:
            return call()
        except (MlflowException, SQLAlchemyError, OSError, ModuleNotFoundError) as error:
            if retries_left and any(words in str(error) for words in TEMPORARY):
                time.sleep(0.5)
                continue
            # Masked before it is shortened, which could hide the end of a password.
            first_line = (mask(str(error)).strip().splitlines() or [type(error).__name__])[0][:300]
            raise RegistryUnreachable(
                f"the registry {mask(uri)} cannot be used: {first_line}",
                "check RETRAIN_REGISTRY, and that its server or its folder can be reached and written",
            ) from error
    raise AssertionError("the last try returns or raises")


def none_if_missing(call: Callable[[], T]) -> T | None:
    """Return ``call()``, or None when MLflow answers that it does not exist."""
    from mlflow.exceptions import MlflowException

    try:
        return call()
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def all_pages(search: Callable[..., Any], *arguments: Any, **options: Any) -> Iterator[Any]:
    """Yield the results of all pages of one of MLflow's searches."""
    token: str | None = ""
    while token is not None:
        page = search(*arguments, **options, page_token=token or None)
        yield from page
        token = page.token or None


def create_if_missing(create: Callable[[], object]) -> bool:
    """Call ``create``; return False when it exists already."""
    from mlflow.exceptions import MlflowException

    try:
        create()
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        return False
    return True


def flush_files(client: Any, model: str, artifacts: str | None) -> None:
    """Flush a logged model's files to disk, where they are on this machine.

    MLflow flushes its database but not the files that it copies: after a power cut the version could lack its files.
    """
    from mlflow.utils.file_utils import local_file_uri_to_path

    location = client.get_logged_model(model).artifact_location
    if artifacts is None or not artifacts.startswith("file:") or not location.startswith("file:"):
        return
    path, root = Path(local_file_uri_to_path(location)), Path(local_file_uri_to_path(artifacts))
    for place in (*path.rglob("*"), path, *(folder for folder in path.parents if folder.is_relative_to(root))):
        sync(place)


def follow_moved_files(uri: str, experiment: str, artifacts: str) -> None:
    """Point the paths in MLflow's database to ``artifacts``, where the files are now: it keeps them absolute.

    So a home folder may be moved or copied. Nothing changes where the files are not there.
    """
    import sqlalchemy
    from mlflow.utils.file_utils import local_file_uri_to_path
    from sqlalchemy import column, func, literal, select, table, update

    def exists(location: str) -> bool:
        return Path(local_file_uri_to_path(location)).exists()

    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
    with engine.begin() as database:
        name: Any = column("name", sqlalchemy.String())
        location: Any = column("artifact_location", sqlalchemy.String())
        old = database.execute(select(location).select_from(table("experiments")).where(name == experiment)).scalar()
        if old is None or old == artifacts or not old.startswith("file:"):
            return
        found = database.execute(select(location).select_from(table("logged_models"))).scalars()
        models = [path for path in found if path.startswith(old)]
        # Without any, the folder is empty, or was never made.
        if not any(exists(artifacts + path.removeprefix(old)) for path in models) and (models or exists(old)):
            return
        for owner, kept in _PATHS.items():
            path = column(kept, sqlalchemy.String())
            moved = literal(artifacts) + func.substr(path, len(old) + 1)
            there = func.substr(path, 1, len(old)) == old
            database.execute(update(table(owner, path)).where(there).values({path: moved}))
    log.warning("MLflow's files were moved from %s to %s: its paths follow", old, artifacts)


def is_database(uri: str) -> bool:
    """Return whether ``uri`` names a database, which MLflow opens itself, and not a server."""
    from mlflow.store.db.db_types import DATABASE_ENGINES

    return uri.partition(":")[0].partition("+")[0] in DATABASE_ENGINES


def check_database(uri: str) -> None:
    """Connect to a database once. MLflow would try ten times in 100 s before it gives up."""
    import sqlalchemy

    if not is_database(uri):
        return  # a server, which MLflow's client asks
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
    sqlalchemy.inspect(engine).get_table_names()
    engine.dispose()


def silence_mlflow() -> None:
    """Turn off MLflow's telemetry, migration logs and output, and retries that take minutes."""
    os.environ.update(MLFLOW)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It also logs the traceback of every error that it raises.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def origin() -> dict[str, str]:
    """Return who ran which code, by the tags that MLflow's page shows."""
    revision = code_revision()
    return {
        "mlflow.user": person(),
        "mlflow.source.name": "retrain",
        "mlflow.source.type": "JOB",
        "mlflow.source.git.commit": revision.commit,
        "mlflow.source.git.dirty": revision.dirty,
    }


def ms(at: datetime) -> int:
    """Return a moment as MLflow has it."""
    return int(at.timestamp() * 1_000)
