"""The wheel: installed where there is no checkout, it runs a demo night and `retrain up`, and says what it is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT
from tests.fleet import Up, fake_environment, running
from tests.servers import with_tables

pytestmark = [pytest.mark.longest, pytest.mark.server, pytest.mark.timeout(1800)]

PACKAGES = ("flows", "infra", "tasks", "validation")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, since a build leaves its own folders beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    _pip("wheel", "--no-build-isolation", "--wheel-dir", str(folder), str(folder / "source"))
    [made] = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel; the packages that it requires are those of the running one, its own code not.

    A ``.pth`` file in it is read, one in a folder that it names is not: so an editable install there is not followed.
    """
    venv = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin" / "python"
    _pip("--python", str(python), "install", str(wheel))
    [site] = venv.glob("lib/python*/site-packages")
    paths = sysconfig.get_paths()
    (site / "required.pth").write_text(f"{paths['purelib']}\n{paths['platlib']}\n")
    return python


class Installed(Up):
    """``retrain up`` from the wheel, in an empty folder."""

    def __init__(self, folder: Path, python: Path) -> None:
        super().__init__(folder)
        self.python = str(python)
        self.cwd = folder
        self.environment |= _without_checkout(folder)


def _without_checkout(folder: Path) -> dict[str, str]:
    """Return the path on which only the fake CNNs are found."""
    return {"PYTHONPATH": str(folder / "site")}


def _pip(*arguments: str) -> None:
    first, *rest = arguments
    command = [*((first, rest.pop(0), rest.pop(0)) if first == "--python" else (first,)), "--no-deps", "--no-index"]
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *command, *rest], check=True)


def test_it_has_what_runs_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as files:
        names = {name for name in files.namelist() if ".dist-info/" not in name}
        [metadata] = [name for name in files.namelist() if name.endswith(".dist-info/METADATA")]
        said = Parser().parsestr(files.read(metadata).decode())
    code = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    templates = {str(path.relative_to(ROOT)) for path in (ROOT / "tasks" / "reporting" / "templates").iterdir()}
    assert names == {*code, *templates, "flows/prefect.yaml"}
    assert said["License-Expression"] == "Apache-2.0"
    assert said["License-File"] == "LICENSE"
    assert said["Author"]
    assert said.get_all("Project-URL")
    assert "Operating System :: POSIX :: Linux" in said.get_all("Classifier", [])
    assert said["Requires-Python"]
    assert "A malaria cell classifier" in str(said.get_payload())


def test_a_demo_night_needs_no_checkout(python: Path, tmp_path: Path, prefect_database: Path) -> None:
    with_tables(tmp_path / "home" / "prefect", prefect_database)
    # What learns nothing is promoted, so that the registry and the check before a promotion have their turn.
    no_floors = {f"RETRAIN_GATE__MIN_{name}": "0" for name in ("AUC", "SENSITIVITY", "SPECIFICITY")}
    environment = {**fake_environment(tmp_path, tmp_path / "home", **no_floors), **_without_checkout(tmp_path)}

    def retrain(*arguments: str) -> str:
        done = subprocess.run(
            [python.with_name("retrain"), *arguments],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert retrain("--version").startswith("retrain ")
    night: dict[str, Any] = json.loads(retrain("demo", "--json").splitlines()[-1])
    assert night["verdict"] == "promoted"
    assert night["synthetic"]
    assert Path(night["report"]).exists()
    assert json.loads(retrain("champion", "--json"))["version"] == night["champion_after"]


def test_up_deploys_and_waits(python: Path, tmp_path: Path) -> None:
    machine = Installed(tmp_path, python)
    with running(machine) as addresses:
        assert addresses["next_night"].endswith("UTC")
        where = machine.server.deployments()["retrain/nightly"]["pull_steps"]
        assert str(python.parents[1]) in json.dumps(where)
        assert machine.end() == 0
