"""Where a change comes from: a person, and a revision of the code that says when it was changed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from infra.provenance import Revision, code_revision, person


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_checkout_has_a_revision_and_says_when_it_was_changed(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "code.py").write_text("1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert code_revision(tmp_path) == Revision(commit, "false")
    (tmp_path / "notes.txt").write_text("no code of ours\n")
    assert code_revision(tmp_path) == Revision(commit, "false")
    (tmp_path / "code.py").write_text("2\n")
    assert code_revision(tmp_path) == Revision(commit, "true")
    # Installed somewhere inside a checkout of something else.
    (tmp_path / "site-packages").mkdir()
    assert code_revision(tmp_path / "site-packages") == Revision("unknown", "unknown")


def test_without_a_checkout_or_without_git_it_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert code_revision(tmp_path) == Revision("unknown", "unknown")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code_revision(tmp_path) == Revision("unknown", "unknown")


def test_a_person_is_who_the_system_says_not_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    before = person()
    for name in ("USER", "LOGNAME", "HOSTNAME"):
        monkeypatch.setenv(name, "somebody-else")
    assert person() == before
    monkeypatch.setattr("os.getuid", lambda: 54_321)
    assert person().startswith("uid 54321@")
