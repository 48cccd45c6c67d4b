"""`retrain up` for other machines: refused without a password, protected with one."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import httpx
import pytest

from flows.cli import main as cli
from flows.unattended.up import LocalDeployment
from infra.prefect_server import free_port
from infra.privacy import keep_files_private
from infra.settings.groups import is_loopback
from infra.settings.settings import Settings, load_settings
from validation.errors import RetrainError, SettingsError, UsageError

LOGIN = "operator:a-long-password"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7"])
def test_a_server_that_others_reach_is_refused_without_a_password(
    host: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RETRAIN_UP__HOST", host)
    monkeypatch.setattr(sys, "argv", ["retrain", "up"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert f"RETRAIN_UP__HOST is {host}" in shown
    assert "RETRAIN_UP__AUTH=user:password" in shown
    assert "Traceback" not in shown
    assert not (home / "prefect").exists()


def test_reports_that_others_reach_need_a_password_and_a_port_of_their_own(home: Path) -> None:
    with pytest.raises(UsageError, match=r"RETRAIN_SITE__HOST is 0\.0\.0\.0"):
        LocalDeployment(Settings(home=home, site={"host": "0.0.0.0"}))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        machine = LocalDeployment(Settings(home=home, site={"port": taken.getsockname()[1]}))
        try:
            with pytest.raises(UsageError, match="cannot serve the reports"):
                machine.start()
        finally:
            machine.stop()
    assert not (home / "prefect").exists()


@pytest.mark.parametrize(
    ("name", "value"), [("HOST", "example.org"), ("HOST", "0.0.0.0:4200"), ("AUTH", "operator"), ("AUTH", "operator:")]
)
def test_an_invalid_address_or_login_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"RETRAIN_UP__{name}", value)
    with pytest.raises(SettingsError, match=f"RETRAIN_UP__{name}"):
        load_settings()


@pytest.mark.parametrize(
    ("host", "alone", "url"),
    [
        ("127.0.0.1", True, "http://127.0.0.1:4200/api"),
        ("127.0.0.9", True, "http://127.0.0.9:4200/api"),
        ("localhost", True, "http://127.0.0.1:4200/api"),
        ("::1", True, "http://[::1]:4200/api"),
        ("0.0.0.0", False, "http://127.0.0.1:4200/api"),
        ("::", False, "http://[::1]:4200/api"),
        ("192.0.2.7", False, "http://192.0.2.7:4200/api"),
    ],
)
def test_who_reaches_a_host_and_where_this_machine_does(host: str, alone: bool, url: str, tmp_path: Path) -> None:
    assert is_loopback(host) is alone
    assert Settings(home=tmp_path, up={"host": host}).up.url == url


@pytest.mark.server
@pytest.mark.slow
def test_a_password_is_required(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_AUTH_STRING", raising=False)
    settings = Settings(home=home, up={"host": "0.0.0.0", "port": free_port(), "auth": LOGIN})
    keep_files_private()
    machine = LocalDeployment(settings)
    try:
        machine._start_server()
        url = machine.server.url
        assert machine.server.runs() == []
        for login in (None, ("operator", "wrong"), ("", "")):
            answer = httpx.post(f"{url}/flow_runs/filter", json={}, auth=login, trust_env=False)
            assert answer.status_code == 401
        # The page asks for the login, and calls the host that it was loaded from.
        page = httpx.get(f"{url.removesuffix('/api')}/ui-settings", trust_env=False).json()
        assert (page["auth"], page["api_url"]) == ("BASIC", "/api")
        # The workers' and Prefect's own commands' environment has the login.
        assert machine._worker_environment()["PREFECT_API_AUTH_STRING"] == LOGIN
    finally:
        machine.stop()
    for path in home.rglob("*"):
        if path.is_file():
            assert LOGIN.partition(":")[2].encode() not in path.read_bytes(), path


def test_the_page_calls_the_port_that_it_was_loaded_from(home: Path) -> None:
    machine = LocalDeployment(Settings(home=home, up={"port": 4777}))
    try:
        # A full address would name this machine's port, which a tunnel to another one does not reach.
        assert machine._server_environment()["PREFECT_SERVER_UI_API_URL"] == "/api"
    finally:
        machine.stop()


def test_a_host_of_another_machine_is_one_line(home: Path) -> None:
    machine = LocalDeployment(Settings(home=home, up={"host": "192.0.2.7", "port": free_port(), "auth": LOGIN}))
    try:
        with pytest.raises(RetrainError, match=r"cannot listen at 192\.0\.2\.7"):
            machine._start_server()
    finally:
        machine.stop()
