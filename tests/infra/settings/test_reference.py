"""docs/settings.md says what the settings say."""

from __future__ import annotations

from docs.settings import reference
from infra.settings.settings import Settings
from tests import ROOT
from validation.rules import Rules


def test_the_page_is_current() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    assert page == reference(), "python -m docs.settings > docs/settings.md"


def test_every_setting_is_described_with_its_variable() -> None:
    page = reference()
    for name, field in Settings.model_fields.items():
        group = field.default if isinstance(field.default, Rules) else None
        for inner, described in type(group).model_fields.items() if group else [("", field)]:
            assert described.description, (name, inner)
            variable = "RETRAIN_" + "__".join(filter(None, (name, inner))).upper()
            assert f"| `{variable}` |" in page
    assert "| `auth` (secret) | `RETRAIN_UP__AUTH` |  | `user:password` of Prefect's server and page |" in page
    assert "| `RETRAIN_TRAINING__MODELS` | `fastai,keras` |" in page
    assert "None" not in page
