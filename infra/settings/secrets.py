"""Secrets from places other than the environment: a file (``..._FILE``), or a Secret block of Prefect's server.

``python -m infra.settings.secrets PROGRAM ARGUMENT ...`` runs a program that cannot read such files (Prefect's own
commands, MLflow's server) with the secrets from them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, Secret, SecretStr

from validation.errors import SettingsError
from validation.redaction import mask, register_address, register_login, register_secret

FILE = "_FILE"
BLOCK = "prefect-secret:"
LONGEST = 65_536
# Secrets that libraries read from the environment; NAME_FILE names a file that contains NAME.
LOGINS = ("PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING")
OUTSIDE = (
    *LOGINS,
    *("PREFECT_API_KEY", "PREFECT_SERVER_DATABASE_PASSWORD", "PGPASSWORD"),
    *("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
    *("MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    *("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN"),
)
# Not a secret by itself, and part of every signature.
_NO_SECRET = ("AWS_ACCESS_KEY_ID",)

Path_ = tuple[str, ...]


class SecretAddress(Secret[str]):
    """An address that may contain a password, which is masked wherever it is shown."""

    def _display(self) -> str:
        return mask(self.get_secret_value())


AnySecret = SecretStr | SecretAddress


def secret_settings(model: type[BaseModel], before: Path_ = ()) -> dict[Path_, type[AnySecret]]:
    """Return the types of all secret settings, by their path in the model."""
    secrets: dict[Path_, type[AnySecret]] = {}
    for name, field in model.model_fields.items():
        kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
        for kind in kinds:
            if issubclass(kind, SecretStr | SecretAddress):
                secrets[*before, name] = kind
            elif issubclass(kind, BaseModel):
                secrets |= secret_settings(kind, (*before, name))
    return secrets


def variable(prefix: str, path: Path_) -> str:
    """Return the name of a setting in the environment."""
    return prefix + "__".join(path).upper()


def fill_in_outside(environment: MutableMapping[str, str]) -> None:
    """Put the libraries' secrets that are given as files into the environment."""
    for name in OUTSIDE:
        if (path := _file_of(name, environment)) is not None:
            environment[name] = read_secret(name + FILE, path)
            del environment[name + FILE]  # or the next call would find both
        value = environment.get(name)
        if name in LOGINS:
            register_login(value)
        elif name not in _NO_SECRET:
            register_secret(value)


def from_files(prefix: str, paths: Mapping[Path_, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings that are given as files, nested like the model."""
    settings: dict[str, Any] = {}
    for path in paths:
        name = variable(prefix, path)
        if (place := _file_of(name, environment)) is not None:
            group = settings
            for part in path[:-1]:
                group = group.setdefault(part, {})
            group[path[-1]] = read_secret(name + FILE, place)
    return settings


def read_secret(name: str, path: str) -> str:
    """Return the content of a secret's file, without the line end that editors add.

    Raises:
        SettingsError: when it cannot be read, is empty, or is not text; the message never shows its content.
    """
    try:
        data = Path(path).expanduser().read_bytes()[: LONGEST + 1]
        text = data.decode().removesuffix("\n").removesuffix("\r")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(f"cannot read the secret file {path} ({name}): {why}", "check its path and mode") from None
    if not text or len(data) > LONGEST or "\0" in text:
        raise SettingsError(f"the secret file {path} ({name}) contains no secret", "expected one short line of text")
    return text


def read_block(name: str, block: str, api_url: str | None) -> str:
    """Return the value of a Secret block of Prefect's server.

    Raises:
        SettingsError: when there is no server or no such block.
        Unreachable: when the server does not answer.
    """
    from infra.prefect_api import PrefectServer

    hint = f"create it: prefect block create secret; or give {name}{FILE}"
    if api_url is None:
        raise SettingsError(
            f"{name} is to be read from Prefect's block {block!r}, and PREFECT_API_URL names no server", hint
        )
    if not block.replace("-", "").isalnum() or not block.isascii():
        raise SettingsError(f"{name} names an impossible block {block!r}", "use letters, digits and hyphens")
    path = f"/block_types/slug/secret/block_documents/name/{block}?include_secrets=true"
    document = PrefectServer(api_url).ask("GET", path, missing=None)
    value = (document or {}).get("data", {}).get("value")
    if not isinstance(value, str) or not value:
        raise SettingsError(f"{name}: Prefect's server at {api_url} has no Secret block {block!r} with text", hint)
    return value


def remember_setting(path: Path_, secret: AnySecret) -> None:
    """Mask a setting's secret wherever it appears."""
    value = secret.get_secret_value()
    if isinstance(secret, SecretAddress):
        register_address(value)
    elif path[-1] == "auth":
        register_login(value)
    else:
        register_secret(value)
        # An error of a webhook's receiver often shows only the path of its address, which is the secret part.
        scheme, _, rest = value.partition("://")
        if scheme in ("http", "https"):
            register_secret(rest.partition("/")[2])


def _file_of(name: str, environment: Mapping[str, str]) -> str | None:
    path = environment.get(name + FILE)
    if not path:
        return None
    if environment.get(name):
        raise SettingsError(f"both {name} and {name}{FILE} are set", "keep one of them")
    return path


def main() -> None:
    """Run a program with secrets read from files."""
    environment = dict(os.environ)
    try:
        fill_in_outside(environment)
    except SettingsError as error:
        sys.exit(f"error: {error}")
    # No shell: the arguments are passed unchanged.
    os.execvpe(sys.argv[1], sys.argv[1:], environment)  # noqa: S606


if __name__ == "__main__":
    main()
