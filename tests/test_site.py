"""The site of the documents is built without a connection, and no link in it leads nowhere."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from docs.site import as_mkdocs_reads
from tests import ROOT

pytestmark = pytest.mark.thorough


@pytest.mark.skipif(not importlib.util.find_spec("mkdocs"), reason="mkdocs is not installed: make install-dev")
def test_the_site_is_built(tmp_path: Path) -> None:
    # Strict: a link or an anchor that leads nowhere ends it with 1. The proxy would answer nothing.
    away = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-m", "docs.site", str(tmp_path)],
        cwd=ROOT,
        env=away,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Your first three nights" in (tmp_path / "index.html").read_text()
    page = (tmp_path / "docs" / "records.html").read_text()
    assert 'id="validation.records.Decision"' in page
    assert 'id="validation.errors.StoreUnreachable"' in page


def test_lists_are_indented_as_mkdocs_reads_them() -> None:
    assert as_mkdocs_reads("- a\n  - b\n\n```\n  x\n```\n") == "- a\n    - b\n\n```\n  x\n```\n"
