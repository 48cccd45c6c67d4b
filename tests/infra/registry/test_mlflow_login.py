"""MLflow's server as the compose file starts it: no access without a password; the registry works with one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from infra.prefect_server import free_port
from infra.registry.registry import Registry
from infra.settings.settings import Settings
from tests import ROOT
from validation.errors import RegistryUnreachable

pytestmark = [pytest.mark.server, pytest.mark.slow]

FILE: dict[str, Any] = yaml.safe_load((ROOT / "infra" / "deploy" / "compose.yaml").read_text())
VALUES = {"MLFLOW_USER": "operator", "MLFLOW_PASSWORD": "a-password-for-tests", "MLFLOW_SECRET_KEY": "x" * 32}


def started(folder: Path, port: int, **values: str) -> subprocess.Popen[bytes]:
    """Start the service's very command, over SQLite and a folder in place of PostgreSQL and the bucket."""
    service = FILE["services"]["mlflow"]
    login = folder / "login.ini"
    login.write_text(FILE["configs"]["mlflow-login"]["content"].replace("/data/", f"{folder}/"))
    given = VALUES | values
    environment = {
        name: re.sub(r"\$\{(\w+)[^}]*\}", lambda found: given.get(found[1], ""), value)
        for name, value in service["environment"].items()
        if name.startswith("MLFLOW_")
    } | {"MLFLOW_AUTH_CONFIG_PATH": str(login), "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder}/mlflow.db"}
    del environment["MLFLOW_S3_ENDPOINT_URL"]
    instead = {
        "--host": "127.0.0.1",
        "--port": str(port),
        "--workers": "1",
        "--artifacts-destination": (folder / "files").as_uri(),
        "--allowed-hosts": f"127.0.0.1:{port}",
    }
    words = [word.partition("=") for word in service["command"][2:]]
    arguments = [f"{name}={instead.get(name, value)}" for name, _, value in words]
    assert "--app-name=basic-auth" in arguments
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    tied = [sys.executable, "-W", "ignore", "-m", "infra.processes.parent", str(os.getpid())]
    with (folder / "log").open("wb") as output:
        return subprocess.Popen(
            [*tied, "mlflow", "server", *arguments],
            cwd=folder, stdout=output, stderr=output, start_new_session=True,
            env={**os.environ, **quiet, **environment, "PATH": path, "PYTHONPATH": _python_path()},
        )  # fmt: skip


def _python_path() -> str:
    return ":".join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def ended(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, empty_registry: Path) -> Iterator[str]:
    pytest.importorskip("flask_wtf", reason="MLflow's login needs flask-wtf, which is not installed")
    folder, port = tmp_path_factory.mktemp("login"), free_port()
    (folder / "mlflow.db").write_bytes(empty_registry.read_bytes())
    process = started(folder, port)
    try:
        until = time.monotonic() + 240
        while not _healthy(f"http://127.0.0.1:{port}"):
            assert time.monotonic() < until, (folder / "log").read_text()[-3000:]
            assert process.poll() is None, (folder / "log").read_text()[-3000:]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        ended(process)


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5, trust_env=False).is_success
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("login", [None, ("operator", "wrong"), ("admin", "password1234"), ("nobody", "")])
def test_login_requires_the_password(server: str, login: tuple[str, str] | None) -> None:
    for path in ("/", "/api/2.0/mlflow/registered-models/search", "/api/2.0/mlflow-artifacts/artifacts"):
        answer = httpx.get(f"{server}{path}", auth=login, trust_env=False)
        assert answer.status_code == 401, path


def test_our_registry_gets_in_with_it(server: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", VALUES["MLFLOW_USER"])
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", VALUES["MLFLOW_PASSWORD"])
    assert Registry(Settings(home=home, registry=server)).champion() is None
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "another-password")
    with pytest.raises(RegistryUnreachable) as caught:
        Registry(Settings(home=home, registry=server)).champion()
    assert "another-password" not in str(caught.value)


def test_no_command_contains_a_password() -> None:
    for name, service in FILE["services"].items():
        words = " ".join(map(str, [*service.get("entrypoint", []), *service.get("command", [])]))
        assert not re.search(r"\$\{\w*(PASSWORD|SECRET|AUTH|KEY)", words), name
