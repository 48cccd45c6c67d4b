"""The surroundings of a run: where libraries keep their files, and a Prefect server that is there and then gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from infra import prefect_server as server_module
from infra.local.up_lock import machine_lock, machine_url
from infra.prefect_server import prefect_server
from infra.runtime import prepare_environment
from infra.settings.settings import Settings
from tests.infra.processes.test_parent import is_gone
from tests.servers import with_tables
from validation.errors import RetrainError

pytestmark = pytest.mark.thorough

NAMES = (
    "DO_NOT_TRACK",
    "GX_ANALYTICS_ENABLED",
    "MLFLOW_DISABLE_TELEMETRY",
    "PREFECT_HOME",
    "PREFECT_SERVER_ANALYTICS_ENABLED",
    "PREFECT_LOGGING_EXTRA_LOGGERS",
    "MPLCONFIGDIR",
    "TF_CPP_MIN_LOG_LEVEL",
)


@pytest.fixture
def settings(home: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that monkeypatch puts back what a test leaves there
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_API_URL", "")
    monkeypatch.delenv("PREFECT_API_URL")
    return Settings(home=home)


def test_libraries_keep_to_the_home_folder_and_send_no_telemetry(settings: Settings) -> None:
    prepare_environment(settings)
    for name in ("PREFECT_HOME", "MPLCONFIGDIR"):
        assert Path(os.environ[name]).is_relative_to(settings.home)
    assert os.environ["DO_NOT_TRACK"] == "1"
    assert os.environ["GX_ANALYTICS_ENABLED"] == "false"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_a_process_survives_the_end_of_the_reader_of_its_log(home: Path) -> None:
    code = """
import logging, sys
from pathlib import Path
from infra.runtime import prepare_environment
from infra.settings.settings import Settings
settings = Settings()
prepare_environment(settings)
from prefect.logging import get_logger
from prefect.logging.configuration import setup_logging
setup_logging()
log = get_logger("night")
sys.stdin.readline()
for _ in range(3):
    log.error("is anybody there?")
(settings.home / "went-on").touch()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "RETRAIN_HOME": str(home)}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as child:  # fmt: skip
        assert child.stdin
        assert child.stdout
        assert child.stderr
        child.stdout.close()
        child.stderr.close()
        child.stdin.write("go\n")
        child.stdin.close()
        child.wait()
    assert (home / "went-on").exists()


def test_what_a_person_passes_on_stays(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    prepare_environment(Settings(home=home, inherit=("TF_CPP_*",)))
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0"
    assert "OMP_NUM_THREADS" not in os.environ


def test_a_warning_is_no_error_because_someone_wants_it_elsewhere(home: Path) -> None:
    code = """
import warnings
from infra.runtime import prepare_environment
from infra.settings.settings import Settings
prepare_environment(Settings())
warnings.warn("a library's", DeprecationWarning)
print("went on")
"""
    environment = {**os.environ, "RETRAIN_HOME": str(home), "PYTHONWARNINGS": "error::DeprecationWarning"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("went on\n", 0), done.stderr


def test_a_server_that_is_named_is_used(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect:4200/api")
    with prefect_server(settings) as url:
        assert url == "http://prefect:4200/api"
    assert os.environ["PREFECT_API_URL"] == url
    assert not settings.home.exists()


def test_the_server_of_retrain_up_is_used_where_that_runs(settings: Settings) -> None:
    with machine_lock(settings.home), prefect_server(settings) as url:
        assert url == f"http://127.0.0.1:{settings.up.port}/api"
        assert os.environ["PREFECT_API_URL"] == url
    assert "PREFECT_API_URL" not in os.environ
    assert machine_url(settings) is None


def test_a_server_that_does_not_start_is_an_error_that_names_its_log(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_server_command", lambda port: [sys.executable, "-c", f"exit('no {port}')"])
    with pytest.raises(RetrainError, match="did not start") as caught, prefect_server(settings):
        pass
    log = settings.home / "prefect-server.log"
    assert str(log) in caught.value.hint
    assert log.read_text().startswith("no ")
    assert "PREFECT_API_URL" not in os.environ


@pytest.mark.server
def test_a_temporary_server_answers_and_is_gone_afterwards(settings: Settings) -> None:
    prepare_environment(settings)
    with prefect_server(settings) as url:
        assert os.environ["PREFECT_API_URL"] == url
        assert url.startswith("http://127.0.0.1:")
        assert httpx.get(f"{url}/health", trust_env=False, timeout=120).json() is True
        assert httpx.post(f"{url}/flows/filter", json={}, trust_env=False, timeout=120).json() == []
    assert "PREFECT_API_URL" not in os.environ
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health", trust_env=False, timeout=120)
    assert (settings.home / "prefect").is_dir()


NIGHT = """
import subprocess, sys, time
from infra import prefect_server as server_module, runtime
from infra.settings.settings import load_settings
started = []
class Popen(subprocess.Popen):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        started.append(self.pid)
server_module.subprocess.Popen = Popen
settings = load_settings()
runtime.prepare_environment(settings)
with server_module.prefect_server(settings) as url:
    print(url, *started, flush=True)
    time.sleep(600)
"""


@pytest.mark.server
def test_a_temporary_server_is_gone_when_its_night_is_killed(settings: Settings, prefect_database: Path) -> None:
    with_tables(settings.home / "prefect", prefect_database)
    with subprocess.Popen([sys.executable, "-c", NIGHT], stdout=subprocess.PIPE, text=True) as night:
        assert night.stdout
        try:
            url, server = night.stdout.readline().split()
            assert httpx.get(f"{url}/health", trust_env=False, timeout=120).status_code == 200
        finally:
            night.send_signal(signal.SIGKILL)
    assert is_gone(int(server))
