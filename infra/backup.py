"""Back up and restore what one machine holds: the folder store, MLflow's and Prefect's SQLite files, the settings file.

What lies on servers (a bucket, PostgreSQL) has means of its own, and is named, not copied. Databases are copied by
SQLite's own backup, so a night may be running meanwhile; the caches are left out, since they are made again.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from infra.local.files import write_atomic
from infra.privacy import make_private
from infra.settings.settings import Settings
from validation.digest import sha256
from validation.errors import RetrainError, UsageError
from validation.redaction import mask

log = logging.getLogger(__name__)

MANIFEST = "backup.json"
DATABASES = ("registry", "prefect")


def places(settings: Settings) -> tuple[dict[str, Path], dict[str, str]]:
    """Return what of this machine can be backed up, by name, and what lies elsewhere and how to save it."""
    here = {"settings": settings.home / "retrain.toml"}
    elsewhere = {}
    if (store := _folder(settings.store)) is not None:
        here["store"] = store
    else:
        elsewhere["store"] = f"{mask(settings.store)}: let the bucket keep versions, or copy it with the bucket's tools"
    registry, database = settings.registry.get_secret_value(), settings.up.database.get_secret_value()
    if registry.startswith("sqlite:///"):
        here["registry"] = Path(registry.removeprefix("sqlite:///"))
        if (artifacts := _folder(settings.registry_artifacts or "")) is not None:
            here["artifacts"] = artifacts
    else:
        elsewhere["registry"] = f"{mask(registry)}: pg_dump of MLflow's database, and its artifacts' bucket"
    if not database:
        here["prefect"] = settings.home / "prefect" / "prefect.db"
    else:
        elsewhere["prefect"] = f"{mask(database)}: pg_dump of Prefect's database"
    return here, elsewhere


def back_up(settings: Settings, target: Path) -> dict[str, Any]:
    """Copy what this machine holds into a new folder; return its manifest.

    Raises:
        UsageError: when the folder is there already and not empty.
    """
    if target.exists() and any(target.iterdir()):
        raise UsageError(f"{target} is not empty", "name a new folder for each backup")
    # Prefect's database holds its secrets together with their key, and the settings' file may hold some.
    make_private(target)
    here, elsewhere = places(settings)
    saved = {name: str(path) for name, path in here.items() if path.exists()}
    for name, path in saved.items():
        _copy(name, Path(path), target / name)
    for name, hint in elsewhere.items():
        log.warning("not in this backup: %s, %s", name, hint)
    manifest = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "home": str(settings.home),
        "saved": saved,
        "elsewhere": elsewhere,
        "files": _digests(target),
    }
    # Last: a backup without it was not finished.
    write_atomic(target / MANIFEST, json.dumps(manifest, indent=2).encode())
    return manifest


def restore(settings: Settings, source: Path) -> dict[str, Any]:
    """Put a backup back where its parts came from; return its manifest. What is there must be moved away first.

    Raises:
        UsageError: when it is no whole backup, or something would be overwritten.
        RetrainError: when a file is not as it was saved.
    """
    try:
        manifest: dict[str, Any] = json.loads((source / MANIFEST).read_text())
    except (FileNotFoundError, ValueError):
        raise UsageError(f"{source} is no finished backup: it has no {MANIFEST}", "name the backup's folder") from None
    here, _ = places(settings)
    # MLflow's database names its files by their full path.
    moved = [name for name, path in manifest["saved"].items() if str(here.get(name)) != path]
    if moved:
        raise UsageError(
            f"the settings in force put {', '.join(moved)} elsewhere than the backup: {manifest['saved'][moved[0]]}",
            f"set RETRAIN_HOME={manifest['home']} (and RETRAIN_STORE, RETRAIN_REGISTRY) as they were",
        )
    taken = [path for path in manifest["saved"].values() if _occupied(Path(path))]
    if taken:
        raise UsageError(f"{', '.join(taken)} would be overwritten", "stop `retrain up` and move them away first")
    damaged = [name for name, found in _digests(source).items() if manifest["files"].get(name, found) != found]
    missing = sorted(manifest["files"].keys() - _digests(source).keys())
    if damaged or missing:
        raise RetrainError(f"the backup is damaged: {', '.join([*damaged, *missing][:5])}", "use another one")
    for name, path in manifest["saved"].items():
        _copy(name, source / name, Path(path))
    return manifest


def _copy(name: str, source: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        elif name in DATABASES:
            with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
                old.backup(new)
        else:
            shutil.copyfile(source, target)
        if target.is_file():  # a database or the settings: what may hold a secret is for nobody else
            target.chmod(0o600)
    except (OSError, shutil.Error, sqlite3.Error) as error:
        raise RetrainError(f"cannot copy {source} to {target}: {error}", "is there space, and may we write?") from error


def _digests(folder: Path) -> dict[str, str]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST)
    return {os.fsencode(path.relative_to(folder)).hex(): sha256(path.read_bytes()) for path in found}


def _occupied(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _folder(uri: str) -> Path | None:
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None
