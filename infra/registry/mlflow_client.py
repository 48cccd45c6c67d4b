"""How MLflow is asked: its errors become ours, what passes by itself is asked again, its chatter is switched off."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from infra.local.files import sync
from validation.errors import RegistryUnreachable
from validation.redaction import mask

T = TypeVar("T")

TRIES = 8
# What passes by itself: SQLite lets one process write at a time and tells the others so at once; and where two set an
# alias for the first time at once, MLflow inserts it twice and passes on what the database says to the second.
PASSING = ("database is locked", "UniqueViolation", "UNIQUE constraint failed", "Duplicate entry", "deadlock detected")


def call_mlflow(uri: str, call: Callable[[], T]) -> T:
    """Return what ``call`` asks MLflow for; raises RegistryUnreachable when it does not answer or refuses."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    for left in reversed(range(TRIES)):
        try:
            return call()
        except (MlflowException, SQLAlchemyError, OSError, ModuleNotFoundError) as error:
            if left and any(words in str(error) for words in PASSING):
                time.sleep(0.5)
                continue
            # Masked before it is cut, or the cut could hide where a password ends.
            first_line = (mask(str(error)).strip().splitlines() or [type(error).__name__])[0][:300]
            raise RegistryUnreachable(
                f"the registry {mask(uri)} cannot be used: {first_line}",
                "check RETRAIN_REGISTRY, and that its server or its folder can be reached and written",
            ) from error
    raise AssertionError("the last try returns or raises")


def none_if_missing(call: Callable[[], T]) -> T | None:
    """Return what ``call`` finds, or None when MLflow knows of no such thing."""
    from mlflow.exceptions import MlflowException

    try:
        return call()
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def create_if_missing(create: Callable[[], object]) -> bool:
    """Create something by name; False when somebody else just did."""
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


def is_database(uri: str) -> bool:
    """Whether ``uri`` names a database that MLflow opens itself, and not a server."""
    from mlflow.store.db.db_types import DATABASE_ENGINES

    return uri.partition(":")[0].partition("+")[0] in DATABASE_ENGINES


def check_database(uri: str) -> None:
    """Ask a database once for its tables. MLflow asks ten times in 100 s before it believes that one cannot be used."""
    import sqlalchemy

    if not is_database(uri):
        return  # a server, which MLflow's own client asks
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
    sqlalchemy.inspect(engine).get_table_names()
    engine.dispose()


def silence_mlflow() -> None:
    """Keep MLflow from telling of its database migrations, from calling home and from retrying for minutes."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # Standard output is for what a command says.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It prints the traceback of every error that it raises as well.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
