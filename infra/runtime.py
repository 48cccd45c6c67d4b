"""Prepares this process for a run: its environment (infra/inherited.py), its files, its logs.

Must be done before Prefect, MLflow or Great Expectations are imported, since they read these variables at import.
"""

from __future__ import annotations

import importlib
import logging
import os
import tomllib
import warnings
from contextlib import chdir
from pathlib import Path

from infra.inherited import fixed, left_out, of_a_night
from infra.privacy import keep_files_private, keep_secrets_out_of_logs, make_private
from infra.settings.settings import Settings

log = logging.getLogger(__name__)


def prepare_environment(settings: Settings) -> None:
    """Give this process the environment of a night: what infra/inherited.py passes on and sets, and nothing else.

    From here on, new files are closed to other users and secrets are masked in logs.
    """
    keep_files_private()
    keep_secrets_out_of_logs()
    make_private(settings.home)
    if "PYTHONWARNINGS" in os.environ:
        _warn_as_usual()
    given = dict(os.environ)
    ours = fixed(settings.home, runs_days=settings.prune.runs_days)
    kept = of_a_night(given, ours, settings.inherit)
    for name in given.keys() - kept.keys():
        del os.environ[name]
    os.environ.update(kept)
    if names := [name for name, _ in left_out(given, kept)]:
        log.info("of the environment not passed on: %s (RETRAIN_INHERIT passes on more)", ", ".join(names))
    for package in ("flows", "tasks", "infra", "validation"):
        logging.getLogger(package).setLevel(logging.INFO)
    # It logs whole addresses, which may contain a signature or a webhook's secret.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    _survive_a_closed_output()


def keep_prefect_from_files(settings: Settings) -> None:
    """Let Prefect read its settings, which it does once, when it is imported, where there are no files of anyone's.

    Does nothing where a command is typed in a folder without such files: not every command needs Prefect.
    """
    if _prefect_would_read_files():
        with chdir(settings.home):
            importlib.import_module("prefect.main")


def _prefect_would_read_files() -> bool:
    """Return whether this folder has files from which Prefect takes settings when it is imported."""
    if Path(".env").exists() or Path("prefect.toml").exists():
        return True
    try:
        return "prefect" in tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8")).get("tool", {})
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True  # Prefect would fail on it


def _warn_as_usual() -> None:
    """Take back what PYTHONWARNINGS asked for when this process started: a library's warning must not end a night."""
    warnings.resetwarnings()
    for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", category)


def _survive_a_closed_output() -> None:
    """Continue silently when the reader of this process's output is gone: a killed worker, a closed terminal.

    Prefect logs through rich, which would end the process (exit code 1, the night Crashed).
    """
    from rich.console import Console

    def go_silent(console: Console) -> None:
        console.quiet = True
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, console.file.fileno())
        os.close(nothing)

    Console.on_broken_pipe = go_silent  # type: ignore[assignment, method-assign]
