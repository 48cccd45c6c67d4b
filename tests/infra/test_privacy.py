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
from validation.errors import RetrainError

ROOT = Path(__file__).parents[2]
# A night's own writers, one after the other, as a command runs them; no Prefect, no training.
WRITES = """
import json, os, sys
from pathlib import Path
from infra.settings import load_settings
from infra.runtime import prepare_environment
settings = load_settings()
prepare_environment(settings)
from infra.registry import Registry
from infra.services import Services
from tests.builders import folder_context, plain_cells, prepare
import tasks.validate
from validation.expectations import Judged
tasks.validate.check_batch = lambda *_: Judged((), {})
context = folder_context(settings.home, plain_cells(12, 2))
made = prepare(context)
Registry(settings)
with context.workspace.night_lock(), context.workspace.champion_lock():
    pass
services = Services(settings.home / "logs")
services.start("a", ["this"], dict(os.environ)).process.wait()
services.close()
from infra.backup import back_up
back_up(settings, Path(sys.argv[1]) / "backup")
"""


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_nothing_that_is_written_is_for_others(umask: int, tmp_path: Path) -> None:
    home = tmp_path / "home"
    environment = {**os.environ, "RETRAIN_HOME": str(home), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WRITES, str(tmp_path)],
        cwd=ROOT, env=environment, umask=umask, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [home, *home.rglob("*"), *(tmp_path / "backup").rglob("*")]
    modes = {path: stat.S_IMODE(path.lstat().st_mode) for path in found}
    assert modes[home] == 0o700
    written = {path.name for path in modes}
    assert {"mlflow.db", "retraining", "cache", "night.lock", "a.log", "backup.json", "registry"} <= written
    assert len(modes) > 40
    assert {str(path): oct(mode) for path, mode in modes.items() if mode & 0o007} == {}
    if umask == 0o077:
        assert {str(path): oct(mode) for path, mode in modes.items() if mode & 0o077} == {}
    assert stat.S_IMODE((tmp_path / "backup").stat().st_mode) == 0o700


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
    with pytest.raises(RetrainError, match="cannot make the folder"):
        make_private(tmp_path / "file" / "home")
