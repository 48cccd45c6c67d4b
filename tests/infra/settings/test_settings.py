"""Settings: which source wins, what is refused and in which words, what a fingerprint says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infra.settings.settings import Settings, config_path, load_settings
from validation.errors import SettingsError
from validation.redaction import mask


@pytest.fixture
def toml(home: Path) -> Path:
    home.mkdir()
    return home / "retrain.toml"


def test_everything_lies_under_the_home_folder_by_default(home: Path) -> None:
    settings = load_settings()
    assert settings.home == home
    assert settings.store == f"file://{home}/store"
    assert settings.registry.get_secret_value() == f"sqlite:///{home}/mlflow.db"
    assert settings.registry_artifacts == f"file://{home}/mlflow-artifacts"
    assert settings.training.models == ("fastai", "keras")
    assert not home.exists()


def test_the_environment_wins_over_the_file_and_the_file_over_the_default(
    toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toml.write_text('store = "s3://from-file/cells"\nstore_region = "eu-west-1"\n[gate]\nlooks = 3\n')
    monkeypatch.setenv("RETRAIN_STORE", "s3://from-environment")
    settings = load_settings()
    assert settings.store == "s3://from-environment"
    assert settings.store_region == "eu-west-1"
    assert settings.gate.looks == 3
    assert settings.gate.error_budget == 0.05


def test_one_setting_of_a_group_leaves_the_others_as_they_are(toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml.write_text("[gate]\nlooks = 3\n[training]\nside = 32\n[training.keras]\nepochs = 2\npatience = 1\n")
    monkeypatch.setenv("RETRAIN_GATE__ERROR_BUDGET", "0.1")
    monkeypatch.setenv("RETRAIN_TRAINING__MODELS", "keras, fastai")
    monkeypatch.setenv("RETRAIN_TRAINING__KERAS__EPOCHS", "5")
    settings = load_settings()
    assert (settings.gate.looks, settings.gate.error_budget, settings.gate.min_auc) == (3, 0.1, 0.9)
    assert (settings.training.side, settings.training.models) == (32, ("keras", "fastai"))
    assert settings.training.recipe("keras") == {"epochs": "5", "patience": 1}
    assert settings.training.recipe("fastai") == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RETRAIN_MODELS", "keras"),
        ("RETRAIN_HOMES", "/somewhere"),
        ("RETRAIN_GATES__LOOKS", "3"),
        ("RETRAIN_GATE__LOKS", "3"),
        ("RETRAIN_STORE__REGION", "eu-west-1"),
        ("RETRAIN_CONFIG__X", "1"),
    ],
)
def test_an_unknown_name_in_the_environment_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"unknown setting.*{name}") as caught:
        load_settings()
    assert caught.value.hint
    assert caught.value.exit_code == 2


def test_all_that_is_wrong_is_named_at_once_by_both_names(toml: Path) -> None:
    toml.write_text("stroe = 1\n[gate]\nlooks = 0\nmargin = 2\n[data]\npatient_pattern = '('\n[training]\nside = 'x'\n")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    lines = caught.value.message.splitlines()
    assert len(lines) == 5
    for name, variable in (
        ("stroe", "RETRAIN_STROE"),
        ("gate.looks = 0", "RETRAIN_GATE__LOOKS"),
        ("gate.margin", "RETRAIN_GATE__MARGIN"),
        ("data.patient_pattern = '('", "RETRAIN_DATA__PATIENT_PATTERN"),
        ("training.side = 'x'", "RETRAIN_TRAINING__SIDE"),
    ):
        assert any(name in line and variable in line and str(toml) in line for line in lines), name


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("RETRAIN_GATE__LOOKS", "0", "greater than or equal to 1"),
        ("RETRAIN_GATE__ERROR_BUDGET", "nan", "finite|less than|greater than"),
        ("RETRAIN_TRAINING__SIDE", "big", "valid integer"),
        ("RETRAIN_TRAINING__MODELS", ",", "at least 1 item"),
        ("RETRAIN_TRAINING__WHERE", "there", "'here' or 'deployment'"),
        ("RETRAIN_TRAINING__MEMBERS", "6", "less than or equal to 5"),
        ("RETRAIN_DATA__PATIENT_PATTERN", "no group", "exactly one group"),
        ("RETRAIN_ABOUT__SITE_PATTERN", "no group", "exactly one group, the site"),
        ("RETRAIN_GATE", "strict", "as JSON"),
    ],
)
def test_an_impossible_value_is_refused_by_name(
    name: str, value: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=why) as caught:
        load_settings()
    # The error about shares names the second of the two.
    assert name.removesuffix("TRAIN").removesuffix("__") in caught.value.message


@pytest.mark.parametrize("line", ["store = 5", "[store]\nuri = 'x'", "registry = [1]", "gate = 3", "training = 'x'"])
def test_a_value_of_the_wrong_kind_in_the_file_is_refused_by_name(line: str, toml: Path) -> None:
    toml.write_text(line)
    with pytest.raises(SettingsError, match=f"setting {line.strip('[').split()[0].strip(']')} = "):
        load_settings()


def test_a_home_of_the_wrong_kind_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.toml").write_text("home = 5")
    monkeypatch.setenv("RETRAIN_CONFIG", str(tmp_path / "mine.toml"))
    monkeypatch.delenv("RETRAIN_HOME")
    with pytest.raises(SettingsError, match="setting home = 5"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "why"), [("wh?t", "a \\? ends the address of a database"), ("caf\udce9", "its name is not UTF-8")]
)
def test_a_home_that_addresses_cannot_hold_is_refused(
    name: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database would be made beside it; tests/flows/test_other_peoples_settings.py has one of all other letters."""
    monkeypatch.setenv("RETRAIN_HOME", str(tmp_path / name))
    with pytest.raises(SettingsError, match=f"setting home = .*{why}"):
        load_settings()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["REGISTRY", "UP__DATABASE"])
def test_a_database_in_the_folder_where_one_happens_to_be_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"RETRAIN_{name}", "sqlite:///mine.db")
    with pytest.raises(SettingsError, match="with four slashes"):
        load_settings()


def test_empty_text_in_the_environment_means_not_set(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONFIG", "STORE", "STORE_ENDPOINT", "REGISTRY", "GATE__LOOKS"):
        monkeypatch.setenv(f"RETRAIN_{name}", "")
    settings = load_settings()
    assert settings == Settings(home=home)
    assert settings.store_endpoint is None


def test_a_plain_path_becomes_a_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RETRAIN_STORE", "my cells/ä")
    assert load_settings().store == (tmp_path / "my cells" / "ä").as_uri()
    monkeypatch.setenv("RETRAIN_STORE", "~/cells")
    assert load_settings().store == (Path.home() / "cells").as_uri()
    monkeypatch.setenv("RETRAIN_HOME", "here")
    assert load_settings().home == tmp_path / "here"


def test_a_path_in_the_settings_file_is_seen_from_the_files_folder(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.mkdir(exist_ok=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for named, store in (
        ("../cells", home / "../cells"),
        (str(tmp_path / "x"), tmp_path / "x"),
        ("~/x", Path.home() / "x"),
    ):
        (home / "retrain.toml").write_text(f'store = "{named}"')
        assert load_settings().store == store.as_uri()
    (home / "retrain.toml").write_text('store = "s3://cells"')
    assert load_settings().store == "s3://cells"


def test_a_named_settings_file_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRAIN_CONFIG", str(tmp_path / "none.toml"))
    with pytest.raises(SettingsError, match=r"no settings file at .*none\.toml"):
        load_settings()
    monkeypatch.setenv("RETRAIN_CONFIG", str(tmp_path))
    with pytest.raises(SettingsError, match="cannot read"):
        load_settings()


def test_the_settings_file_lies_in_the_home_folder_unless_named(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert config_path() == home / "retrain.toml"
    monkeypatch.setenv("RETRAIN_CONFIG", str(tmp_path / "mine.toml"))
    assert config_path() == tmp_path / "mine.toml"


@pytest.mark.parametrize("data", [b"store = ", b"\xff\xfe", b"[gate]\nlooks = 1\n[gate]\nlooks = 2"])
def test_a_malformed_file_is_named(data: bytes, toml: Path) -> None:
    toml.write_bytes(data)
    with pytest.raises(SettingsError, match="is not valid TOML") as caught:
        load_settings()
    assert str(toml) in caught.value.message


def test_passwords_are_masked(home: Path) -> None:
    settings = Settings(home=home, registry="postgresql://me:s3cret@db:5432/ml", store="s3://b")
    shown = settings.printable()
    assert shown["registry"] == "postgresql://me:***@db:5432/ml"
    assert "s3cret" not in str(shown)
    assert shown["gate.looks"] == "24"
    assert shown["training.models"] == "fastai, keras"
    assert shown["store_endpoint"] == ""
    assert mask("redis://:s3cret@host and http://a:b@c") == "redis://:***@host and http://***@c"
    # A user name may be a token; that of a database is none.
    assert mask("http://TOKEN@host http://TOKEN:@host s3://TOKEN:x@b https://TOKEN:p/w@h") == (
        "http://***@host http://***@host s3://***@b https://***@h"
    )
    assert mask("postgresql+psycopg2://me@db/x, file:///a@b, https://host/a@b") == (
        "postgresql+psycopg2://me@db/x, file:///a@b, https://host/a@b"
    )
    assert mask("http://host:80/path") == "http://host:80/path"
    # A password with signs that should have been escaped, and one that is not before the @.
    assert mask("postgresql://me:p@ss/w@rd@db/x refused") == "postgresql://me:***@db/x refused"
    for name in ("password", "sslpassword", "TOKEN"):
        assert mask(f"postgresql://db/x?user=me&{name}=hunter2&b=1") == f"postgresql://db/x?user=me&{name}=***&b=1"


def test_a_fingerprint_says_what_matters_and_not_where_things_are(tmp_path: Path) -> None:
    base = Settings(home=tmp_path / "a")
    places = Settings(
        home=tmp_path / "b",
        store="s3://bucket",
        registry="http://mlflow:5000",
        training={"where": "deployment", "at_once": 2, "deployment_timeout_seconds": 5},
    )
    assert places.fingerprint() == base.fingerprint()
    others: list[dict[str, Any]] = [
        {"gate": {"looks": 3}},
        {"data": {"min_pixels": 20}},
        {"training": {"members": 4}},
        {"training": {"side": 96}},
        {"training": {"seed": 2}},
        {"training": {"models": "keras"}},
        {"training": {"fastai": {"epochs": 2}}},
    ]
    prints = {Settings(home=tmp_path, **other).fingerprint() for other in others}
    assert len(prints | {base.fingerprint()}) == len(others) + 1


def test_settings_cannot_be_changed_afterwards(home: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings(home=home).store = "s3://other"  # type: ignore[misc]
