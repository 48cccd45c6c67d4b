"""Secrets from files and Prefect's blocks, and what is shown of them: nothing, in no message and no dump."""

from __future__ import annotations

import base64
import json
import logging
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import quote, unquote

import pytest

from infra.privacy import keep_secrets_out_of_logs, redact_exceptions
from infra.settings.secrets import fill_in_outside
from infra.settings.settings import SECRETS, Settings, load_settings
from validation.errors import RetrainError, SettingsError
from validation.redaction import mask, register_login, register_secret

SECRET = "canary/of+these-tests"
HOOK = f"https://hooks.example/services/{SECRET}"


def given(folder: Path, text: str = f"{HOOK}\n") -> str:
    path = folder / "secret"
    path.write_text(text)
    return str(path)


def test_these_settings_are_secrets() -> None:
    assert {".".join(path) for path in SECRETS} == {
        "registry",
        "up.auth",
        "up.database",
        "alerts.webhook",
        "alerts.token",
    }


def test_a_secret_is_read_from_the_file_that_is_named(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.mkdir()
    below = 'registry = "sqlite:////below.db"\n[alerts]\nnight_hours = 3\nwebhook = "below"\n'
    (home / "retrain.toml").write_text(below)
    monkeypatch.setenv("RETRAIN_ALERTS__WEBHOOK_FILE", given(tmp_path))
    settings = load_settings()
    assert settings.alerts.webhook is not None
    assert settings.alerts.webhook.get_secret_value() == HOOK
    assert settings.alerts.night_hours == 3
    assert settings.registry.get_secret_value() == "sqlite:////below.db"


def test_a_secret_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRAIN_ALERTS__WEBHOOK_FILE", given(tmp_path))
    monkeypatch.setenv("RETRAIN_ALERTS__WEBHOOK", HOOK)
    with pytest.raises(SettingsError, match="both RETRAIN_ALERTS__WEBHOOK and RETRAIN_ALERTS__WEBHOOK_FILE"):
        load_settings()


@pytest.mark.parametrize("text", ["", "\n", "a\0b", "x" * 70_000, None])
def test_a_file_without_a_secret_is_refused_by_name(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "none") if text is None else given(tmp_path, text)
    monkeypatch.setenv("RETRAIN_UP__AUTH_FILE", path)
    with pytest.raises(SettingsError, match=r"RETRAIN_UP__AUTH_FILE") as caught:
        load_settings()
    assert path in caught.value.message


def test_only_a_secret_has_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRAIN_STORE_FILE", given(tmp_path))
    with pytest.raises(SettingsError, match=r"unknown setting.*RETRAIN_STORE_FILE"):
        load_settings()


def test_the_libraries_secrets_come_from_files_too(tmp_path: Path) -> None:
    environment = {"PREFECT_API_AUTH_STRING_FILE": given(tmp_path, "me:long-enough-to-hide\r\n")}
    for _ in range(2):  # a second look finds what the first left
        fill_in_outside(environment)
        assert environment == {"PREFECT_API_AUTH_STRING": "me:long-enough-to-hide"}
    assert mask("it said long-enough-to-hide") == "it said ***"


def test_a_program_that_knows_no_such_files_is_run_with_them(tmp_path: Path) -> None:
    show = "import os; print(os.environ['PGPASSWORD'], 'PGPASSWORD_FILE' in os.environ, flush=True)"
    command = [sys.executable, "-m", "infra.settings.secrets", sys.executable, "-c", show]
    environment = {**os.environ, "PGPASSWORD_FILE": given(tmp_path, "$(touch hacked); `id`")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "$(touch hacked); `id` False\n"
    environment["PGPASSWORD_FILE"] = str(tmp_path / "none")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: cannot read the secret file")


@pytest.fixture
def prefect(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str | None]]]:
    """A server that answers like Prefect's for one Secret block; yield what it was asked."""
    asked: list[tuple[str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers["Authorization"]))
            there = "/name/malaria-hook?" in self.path
            body = json.dumps({"data": {"value": HOOK}} if there else {"detail": "not found"}).encode()
            self.send_response(200 if there else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{server.server_port}/api")
    yield asked
    server.shutdown()
    server.server_close()


def test_a_secret_is_read_from_prefects_block(
    prefect: list[tuple[str, str | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:password-of-prefect")
    monkeypatch.setenv("RETRAIN_ALERTS__WEBHOOK", "prefect-secret:malaria-hook")
    settings = load_settings()
    assert settings.alerts.webhook is not None
    assert settings.alerts.webhook.get_secret_value() == HOOK
    login = base64.b64encode(b"me:password-of-prefect").decode()
    path = "/api/block_types/slug/secret/block_documents/name/malaria-hook?include_secrets=true"
    assert prefect == [(path, f"Basic {login}")]
    assert SECRET not in str(settings.printable())
    monkeypatch.setenv("RETRAIN_ALERTS__WEBHOOK", "prefect-secret:other")
    with pytest.raises(SettingsError, match=r"RETRAIN_ALERTS__WEBHOOK: .* has no Secret block 'other'"):
        load_settings()
    monkeypatch.setenv("RETRAIN_ALERTS__WEBHOOK", "prefect-secret:../../variables")
    with pytest.raises(SettingsError, match="impossible block"):
        load_settings()


def test_a_block_without_a_server_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRAIN_REGISTRY", "prefect-secret:registry")
    with pytest.raises(SettingsError, match="PREFECT_API_URL names no server") as caught:
        load_settings()
    assert "RETRAIN_REGISTRY_FILE" in caught.value.hint


def test_nothing_shows_a_secret(home: Path) -> None:
    address = f"postgresql://me:{quote(SECRET, safe='')}@db/x"
    settings = Settings(
        home=home,
        registry=address,
        up={"auth": f"me:{SECRET}", "database": address},
        alerts={"webhook": HOOK},
    )
    shown = [repr(settings), str(settings), settings.model_dump_json(), str(settings.model_dump()), f"{settings.up!s}"]
    for text in [*shown, str(settings.printable())]:
        assert SECRET not in text
        assert quote(SECRET, safe="") not in text
    assert settings.printable()["registry"] == "postgresql://me:***@db/x"
    assert (
        Settings(home=home, registry=f"http://{quote(SECRET, safe='')}@host").printable()["registry"]
        == "http://***@host"
    )
    assert settings.printable()["up.database"] == "postgresql+asyncpg://me:***@db/x"
    assert settings.up.database.get_secret_value() == f"postgresql+asyncpg://me:{quote(SECRET, safe='')}@db/x"


@pytest.mark.parametrize(
    "line",
    [
        f"alerts = '{HOOK}'",
        f"[alerts]\nwebhook = ['{HOOK}']",
        f"[alerts]\nwebhok = '{HOOK}'",
        f"[up]\nauth = '{SECRET}'",
        f"registry = ['{SECRET}']",
        f"store = 's3://me:{SECRET}@bucket'",
        f"store = 's3://{quote(SECRET, safe='')}@bucket'",
        f"store_endpoint = 'http://me:{SECRET}@host:9000'",
        f"store_endpoint = 'http://{quote(SECRET, safe='')}@host:9000'",
        f"registry_artifacts = 's3://{quote(SECRET, safe='')}@bucket'",
        f"registry = 'http://{quote(SECRET, safe='')}@[host'",
        f"[events]\nqueue = 'https://me:{SECRET}@sqs/1/q'",
        f"[alerts]\nwebhook = '{HOOK}",
        f"'{HOOK}'",
    ],
)
def test_a_secret_in_a_mistake_is_not_shown(line: str, home: Path) -> None:
    home.mkdir()
    (home / "retrain.toml").write_text(line)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert SECRET not in unquote(str(caught.value))
    assert str(home / "retrain.toml") in caught.value.message


def test_what_is_remembered_is_hidden_in_every_spelling() -> None:
    register_login(f"me:{SECRET}")
    register_secret("short")
    header = base64.b64encode(f"me:{SECRET}".encode()).decode()
    for spelt in (SECRET, quote(SECRET, safe=""), header):
        assert mask(f"before {spelt} after") == "before *** after"
    assert mask("short") == "short"
    error = pickle.loads(pickle.dumps(RetrainError(f"no {SECRET}", f"not {SECRET}")))
    assert (error.message, error.hint) == ("no ***", "not ***")


def test_no_log_has_a_secret_whatever_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    register_secret(SECRET)
    before = logging.getLogRecordFactory()
    try:
        keep_secrets_out_of_logs()
        keep_secrets_out_of_logs()  # once is enough
        log = logging.getLogger("another.library")
        log.warning("with %s", SECRET)
        log.warning({"as": SECRET})
        try:
            raise RuntimeError(SECRET) from ValueError(SECRET)
        except RuntimeError:
            log.exception("it failed")
    finally:
        logging.setLogRecordFactory(before)
    assert len(caplog.records) == 3
    assert SECRET not in caplog.text
    assert "with ***" in caplog.text
    assert "RuntimeError: ***" in caplog.text


def test_an_unexpected_error_is_raised_without_its_secret() -> None:
    register_secret(SECRET)
    with pytest.raises(RetrainError, match=r"unexpected KeyError: '\*\*\*'") as caught, redact_exceptions():
        raise KeyError(SECRET)
    assert caught.value.__suppress_context__
    with pytest.raises(KeyError), redact_exceptions():
        raise KeyError("no secret")
