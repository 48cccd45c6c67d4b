"""Prints docs/settings.md, from the descriptions of the settings: ``python -m docs.settings > docs/settings.md``."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from infra.settings.secrets import SecretAddress, variable
from infra.settings.settings import PREFIX, SECRETS, Settings
from validation.rules import Rules

_INTRODUCTION = """\
# Settings

This page is generated from the fields in `infra/settings/` and `validation/rules.py`: change a description there, then
run `python -m docs.settings > docs/settings.md`. Each setting is taken from the first of these that has it:

1. the environment: `RETRAIN_STORE`, nested ones with two underscores: `RETRAIN_GATE__SENSITIVITY_MARGIN=0.005`
2. a TOML file: `RETRAIN_CONFIG`, or `<home>/retrain.toml`: `[gate]` `sensitivity_margin = 0.005`
3. the defaults below

Secrets (marked) can also be read from a file or a block of Prefect's: [security.md](security.md). `retrain settings`
prints the settings in force, passwords masked. Unknown and invalid settings are refused by name before anything runs.

S3's identity is boto3's: `AWS_PROFILE`, `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, a role. An MLflow server's
login is `MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`. `PREFECT_API_URL` names the Prefect server; without
it a night starts a temporary one on loopback.
"""


def reference() -> str:
    """Return the page, in Markdown."""
    groups = {name: field.default for name, field in Settings.model_fields.items() if isinstance(field.default, Rules)}
    lines = [_INTRODUCTION, "## Where things are", *_table(Settings)]
    for name, group in groups.items():
        title, _, text = inspect.cleandoc(type(group).__doc__ or "").replace("``", "`").partition("\n\n")
        lines += [f"\n## `{name}`: {title[0].lower()}{title[1:].rstrip('.')}"]
        lines += [f"\n{text}"] if text else []
        lines += _table(type(group), (name,))
    return "\n".join(lines) + "\n"


def _table(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[str]:
    yield "\n| setting | environment | default | meaning |\n|---|---|---|---|"
    for name, field in model.model_fields.items():
        if not isinstance(field.default, Rules):
            mark = " (secret)" if (*path, name) in SECRETS else ""
            environment = variable(PREFIX, (*path, name))
            yield f"| `{name}`{mark} | `{environment}` | {_default(field)} | {field.description} |"


def _default(field: FieldInfo) -> str:
    value: Any = None if field.is_required() else field.get_default(call_default_factory=True)
    if isinstance(value, SecretAddress):
        value = value.get_secret_value()
    if isinstance(value, tuple):
        value = ",".join(value)
    if isinstance(value, bool):
        value = str(value).lower()
    return "" if value in (None, "", {}) else f"`{value}`"


if __name__ == "__main__":
    sys.stdout.write(reference())
