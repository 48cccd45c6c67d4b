"""Backs up and restores one machine: the folder store, MLflow's and Prefect's SQLite files, the settings file.

Servers (a bucket, PostgreSQL) have their own backups: they are named, not copied. Caches are left out.

A night may run meanwhile: the backup is what there was at one moment, at which no champion changes. Then the registry's
database is copied and the files are listed; what is written later belongs to a night that is run again.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from infra.local.files import Workspace, write_atomic
from infra.privacy import make_private
from infra.settings.settings import Settings
from infra.store.folder import FolderStore
from infra.store.keys import OURS, PARTS
from validation.digest import sha256
from validation.errors import RetrainError, UsageError
from validation.redaction import mask

log = logging.getLogger(__name__)

MANIFEST = "backup.json"
DATABASES = ("registry", "prefect")


def places(settings: Settings) -> tuple[dict[str, Path], dict[str, str]]:
    """Return this machine's parts of a backup, by name, and how to back up those on servers."""
    here, remote = {"settings": settings.home / "retrain.toml"}, {}
    if (store := _folder(settings.store)) is not None:
        here["store"] = store
    else:
        remote["store"] = f"{mask(settings.store)}: enable versioning in the bucket, or copy it with the bucket's tools"
    registry, database = settings.registry.get_secret_value(), settings.up.database.get_secret_value()
    if registry.startswith("sqlite:///"):
        here["registry"] = Path(registry.removeprefix("sqlite:///"))
        if (artifacts := _folder(settings.registry_artifacts or "")) is not None:
            here["artifacts"] = artifacts
    else:
        remote["registry"] = f"{mask(registry)}: pg_dump of MLflow's database, and its artifacts' bucket"
    if not database:
        here["prefect"] = settings.home / "prefect" / "prefect.db"
    else:
        remote["prefect"] = f"{mask(database)}: pg_dump of Prefect's database"
    return here, remote


def back_up(settings: Settings, target: Path) -> dict[str, Any]:
    """Copy this machine's parts into a new folder; return its manifest.

    Raises:
        UsageError: when the folder exists and is not empty, or there is nothing to back up.
    """
    if target.exists() and any(target.iterdir()):
        raise UsageError(f"{target} is not empty", "name a new folder for each backup")
    here, remote = places(settings)
    state = {name: path for name, path in here.items() if name != "settings"}
    if state and not any(path.is_file() or _files(path) for path in state.values()):
        raise UsageError(
            f"there is nothing to back up: no {', no '.join(f'{name} at {path}' for name, path in state.items())}",
            "is it another machine, or another home folder? set RETRAIN_HOME (RETRAIN_STORE, RETRAIN_REGISTRY)",
        )
    # Prefect's database contains its secrets with their key; the settings file may contain some.
    make_private(target)
    saved = {name: str(path) for name, path in here.items() if path.exists()}
    with Workspace(settings.home).champion_lock():
        listed = {name: _files(Path(path)) for name, path in saved.items() if Path(path).is_dir()}
        for name in saved.keys() - listed.keys():
            _copy(name, Path(saved[name]), target / name)
    for name, files in listed.items():
        _copy_files(Path(saved[name]), files, target / name)
    for name in state.keys() - saved.keys():
        log.warning("not in this backup: there is no %s at %s", name, here[name])
    for name, hint in remote.items():
        log.warning("not in this backup: %s, %s", name, hint)
    manifest = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "home": str(settings.home),
        "saved": saved,
        "elsewhere": remote,
        "files": _digests(target),
    }
    # Last: a backup without a manifest is unfinished.
    write_atomic(target / MANIFEST, json.dumps(manifest, indent=2).encode())
    return manifest


def restore(settings: Settings, source: Path) -> dict[str, Any]:
    """Copy a backup's parts back to where they came from, which must be empty; return its manifest.

    Raises:
        UsageError: when the backup is unfinished, or something would be overwritten.
        RetrainError: when a file is not as it was saved.
    """
    try:
        manifest: dict[str, Any] = json.loads((source / MANIFEST).read_text())
    except (FileNotFoundError, ValueError):
        raise UsageError(
            f"{source} is not a finished backup: it has no {MANIFEST}", "name the backup's folder"
        ) from None
    here, _ = places(settings)
    # MLflow's database names its files by their full path.
    moved = [name for name, path in manifest["saved"].items() if str(here.get(name)) != path]
    if moved:
        raise UsageError(
            f"the settings in force put {', '.join(moved)} elsewhere than the backup: {manifest['saved'][moved[0]]}",
            f"set RETRAIN_HOME={manifest['home']} (and RETRAIN_STORE, RETRAIN_REGISTRY) as they were",
        )
    taken = [path for path in manifest["saved"].values() if any(Path(path).glob("*")) or Path(path).is_file()]
    if taken:
        raise UsageError(f"{', '.join(taken)} would be overwritten", "stop `retrain up` and move them away first")
    files = _digests(source)
    damaged = sorted(name for name, digest in manifest["files"].items() if files.get(name) != digest)
    if damaged:
        raise RetrainError(f"the backup is damaged: {', '.join(damaged[:5])}", "use another one")
    make_private(settings.home)
    for name, path in manifest["saved"].items():
        _copy(name, source / name, Path(path))
    return manifest


def _files(folder: Path) -> dict[Path, int]:
    """Return the files below a folder, relative to it, with the time of their last change in ns.

    Those that are being written, and what vanishes meanwhile, are left out.
    """
    found, store = {}, FolderStore(folder)
    # Parts are written before the table that names them, so they are listed after it.
    for key, entry in chain(store.walk(), store.walk(PARTS)):
        with suppress(OSError):
            found[Path(key)] = entry.stat().st_mtime_ns
    return found


def _copy_files(source: Path, files: dict[Path, int], target: Path) -> None:
    """Copy files as they were when they were listed: what was replaced since, or removed, belongs to a later state.

    An image that was replaced is copied as it is now: the pull fetches it again.
    """
    for path, changed in files.items():
        with suppress(FileNotFoundError):
            if path.is_relative_to(OURS) and (source / path).stat().st_mtime_ns != changed:
                continue
            with _copying(source / path, target / path):
                shutil.copy2(source / path, target / path)


@contextmanager
def _copying(source: Path, target: Path) -> Iterator[None]:
    """Make the folder of a copy; raise FileNotFoundError where the original is gone, RetrainError for all else."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, shutil.Error, sqlite3.Error) as error:
        if isinstance(error, FileNotFoundError) and not source.exists():
            raise
        raise RetrainError(
            f"cannot copy {source} to {target}: {error}", "check the free space and the permission to write"
        ) from error


def _copy(name: str, source: Path, target: Path) -> None:
    with _copying(source, target):
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        elif name in DATABASES:
            with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
                old.backup(new)
        else:
            shutil.copyfile(source, target)
        if target.is_file():  # a database or the settings, which may contain secrets
            target.chmod(0o600)


def _digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST)
    return {os.fsencode(path.relative_to(folder)).hex(): sha256(path.read_bytes()) for path in files}


def _folder(uri: str) -> Path | None:
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None
