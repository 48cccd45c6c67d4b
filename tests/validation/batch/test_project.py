"""The project that a validation leaves: Great Expectations' users open it, and it changes nothing that is judged."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT
from tests.validation.batch.test_expectations import RULES, _great_expectations, batch
from validation.batch.expectations import check_batch
from validation.batch.totals import totals

pytestmark = pytest.mark.thorough

__all__ = ["_great_expectations"]  # the module's fixture


def test_it_has_definitions_and_results_and_the_checks_are_the_same(tmp_path: Path) -> None:
    facts = batch(30, 30, without_patient=30)
    folder = tmp_path / "great_expectations"
    for _ in range(2):  # the second replaces what the first has left
        found = check_batch(facts, totals(facts, images=70), RULES, folder)
    assert found.checks == check_batch(facts, totals(facts, images=70), RULES).checks
    gx = folder / "gx"
    for kind in ("expectations", "validation_definitions", "checkpoints"):
        assert {path.stem for path in (gx / kind).glob("*.json")} == {"images", "batch"}
    suite = json.loads((gx / "expectations" / "batch.json").read_text())
    assert {one["type"] for one in suite["expectations"]} == {"expect_batch_total_to_be_between"}
    assert "Parasitized cells" in {one["kwargs"]["column"] for one in suite["expectations"]}
    assert len([*(gx / "uncommitted" / "validations").rglob("*-batch.json")]) == 1
    assert "analytics_enabled: false" in (gx / "great_expectations.yml").read_text()


def test_a_folder_that_cannot_be_written_costs_only_the_project(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    facts = batch(30, 30)
    found = check_batch(facts, totals(facts, images=60), RULES, tmp_path / "file" / "great_expectations")
    assert found.checks == check_batch(facts, totals(facts, images=60), RULES).checks
    assert "no Great Expectations project" in caplog.text


def test_the_docs_lines_open_it_and_run_its_checkpoint(home: Path, tmp_path: Path) -> None:
    facts = batch(30, 30)
    assert check_batch(facts, totals(facts, images=60), RULES, home / "great_expectations").results["images"].success
    facts.assign(width=9_999).to_parquet(tmp_path / "facts.parquet")
    [snippet] = [
        text
        for text in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "data.md").read_text(), re.DOTALL)
        if "great_expectations" in text
    ]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", snippet, str(tmp_path / "facts.parquet")],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), "GX_ANALYTICS_ENABLED": "false"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["success"] is False
    [found] = said["validation_results"]
    assert [one["kwargs"]["column"] for one in found["expectations"] if not one["success"]] == ["width"]
