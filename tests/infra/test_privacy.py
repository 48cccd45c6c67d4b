"""What others on this machine may do with our files: nothing, under a permissive and under a strict umask."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from infra.privacy import make_private
from tests import ROOT
from validation.errors import RetrainError

pytestmark = pytest.mark.thorough

# What writes in a night, one after the other, under each umask; no Prefect, no training.
WRITES = """
import os, sys
from pathlib import Path
import tasks.validate
from infra.backup import back_up
from infra.registry.registry import Registry
from infra.runtime import prepare_environment
from infra.processes.supervisor import Supervisor
from infra.settings.settings import Settings
from tests.builders import folder_context, plain_cells, prepare
from validation.batch.expectations import BatchChecks
tasks.validate.check_batch = lambda *_: BatchChecks((), {})
for umask in map(int, sys.argv[2:]):
    os.umask(umask)
    place = Path(sys.argv[1]) / str(umask)
    settings = Settings(home=place / "home")
    prepare_environment(settings)
    (settings.home / "retrain.toml").write_text("[alerts]")
    Registry(settings)
    context = folder_context(settings.home, plain_cells(12, 2))
    prepare(context)
    with context.workspace.night_lock(), context.workspace.champion_lock():
        pass
    services = Supervisor(settings.home / "logs")
    services.start("a", ["this"], dict(os.environ)).process.wait()
    services.close()
    back_up(settings, place / "backup")
"""
UMASKS = (0o000, 0o022, 0o077)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home and its backup for each umask."""
    folder = tmp_path_factory.mktemp("umasks")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WRITES, str(folder), *map(str, UMASKS)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("umask", UMASKS)
def test_nothing_that_is_written_is_for_others(umask: int, written: Path) -> None:
    home, backup = written / str(umask) / "home", written / str(umask) / "backup"
    modes = {path: stat.S_IMODE(path.lstat().st_mode) for path in [home, *home.rglob("*"), backup, *backup.rglob("*")]}
    assert (modes[home], modes[backup]) == (0o700, 0o700)
    names = {path.name for path in modes}
    assert {"mlflow.db", "retraining", "cache", "night.lock", "a.log", "backup.json", "registry"} <= names
    assert len(modes) > 40
    assert {modes[backup / name] for name in ("registry", "settings")} == {0o600}
    forbidden = umask | 0o007
    assert {str(path): oct(mode) for path, mode in modes.items() if mode & forbidden} == {}


def test_a_folder_that_is_there_is_left_as_it_is_and_named_when_others_may_write(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.chmod(0o755)
    with caplog.at_level(logging.WARNING):
        make_private(tmp_path)
        assert caplog.text == ""
        tmp_path.chmod(0o777)
        make_private(tmp_path)
    assert f"chmod o-w {tmp_path}" in caplog.text
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o777


def test_a_home_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RetrainError, match="cannot create the folder"):
        make_private(tmp_path / "file" / "home")
