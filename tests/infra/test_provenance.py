"""Where a change and a night come from: the person, the revision of the code, the machine and its libraries."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from infra import provenance
from infra.provenance import Revision, code_revision, person


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_checkout_has_a_revision_and_reports_local_changes(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "code.py").write_text("1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert code_revision(tmp_path) == Revision(commit, "false")
    (tmp_path / "notes.txt").write_text("not code\n")
    assert code_revision(tmp_path) == Revision(commit, "false")
    (tmp_path / "code.py").write_text("2\n")
    assert code_revision(tmp_path) == Revision(commit, "true")
    # Installed inside the checkout of another project.
    (tmp_path / "site-packages").mkdir()
    assert code_revision(tmp_path / "site-packages") == Revision("unknown", "unknown")


def test_without_a_checkout_or_without_git_it_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert code_revision(tmp_path) == Revision("unknown", "unknown")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code_revision(tmp_path) == Revision("unknown", "unknown")


def test_a_person_is_the_system_user_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    before = person()
    for name in ("USER", "LOGNAME", "HOSTNAME"):
        monkeypatch.setenv(name, "another-user")
    assert person() == before
    monkeypatch.setattr("os.getuid", lambda: 54_321)
    assert person().startswith("uid 54321@")


def test_the_hardware_is_described_in_one_line() -> None:
    assert re.fullmatch(r".+, \d+ cores?, \d+ GiB memory, \w+", provenance.hardware())


def test_the_versions_are_the_installed_ones() -> None:
    assert provenance.versions()["numpy"] == np.__version__


def test_peak_memory_can_be_reset() -> None:
    if provenance.peak_memory_mb() is None:
        pytest.skip("this system does not measure peak memory")
    block = np.ones(25_000_000)  # 200 MB
    high = provenance.peak_memory_mb()
    del block
    provenance.forget_peak_memory()
    low = provenance.peak_memory_mb()
    assert high is not None
    assert low is not None
    if low == high:
        pytest.skip("this system cannot reset it")
    assert high - low > 100


def test_outside_a_checkout_there_is_no_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "code_revision", lambda: code_revision(tmp_path))
    assert provenance.revision() is None
    (tmp_path / ".git").mkdir()  # an empty folder is not a repository
    assert provenance.revision() is None
