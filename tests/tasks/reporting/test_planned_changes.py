"""The planned changes: each rule as the settings have it, and another number for other rules."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from infra.settings.settings import Settings
from infra.store.keys import PLAN, report_key
from tasks.reporting.index import build_site
from tasks.reporting.planned_changes import render_plan
from tests.builders import CountingStore, context_over
from tests.tasks.reporting.test_page import text_of

pytestmark = pytest.mark.thorough


@pytest.fixture(autouse=True)
def _settings_of_no_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RETRAIN_HOME", str(tmp_path))


def plan(tmp_path: Path, **changed: Any) -> str:
    return text_of(render_plan(Settings(home=tmp_path, **changed)))


def test_each_rule_is_that_of_the_settings(tmp_path: Path) -> None:
    text = plan(tmp_path)
    assert "sensitivity of 80%" in text
    assert "not lower by more than 1 point, specificity not by more than 1 point" in text
    assert "at most 5%, over 24 looks" in text
    assert "without a person" in text
    assert "A webhook (none is set)" in text
    assert "Not stated (setting about.told)" in text
    other = plan(
        tmp_path,
        gate={"sensitivity_margin": 0.02, "reference": "4", "looks": 12},
        promotion={"approval": "person", "approval_hours": 48},
        training={"models": "keras"},
        alerts={"webhook": "https://hooks.example.org/s3cr3t"},
        about={"told": "The ethics board, by letter"},
    )
    assert "not lower by more than 2 points" in other
    assert "against version 4" in other
    assert "waits 48 hours for a person" in other
    assert "over 12 looks" in other
    assert "Which CNN" not in other
    assert "The ethics board, by letter" in other
    assert "s3cr3t" not in other
    numbers = [re.findall(r"plan ([0-9a-f]{12})", shown)[0] for shown in (text, other)]
    assert numbers[0] != numbers[1]


def test_all_settings_of_the_plan_are_listed_without_marks(tmp_path: Path) -> None:
    text = plan(tmp_path)
    for name in ("data.max_class_ratio", "gate.min_auc", "promotion.tolerance", "training.members"):
        assert name in text
    assert "training.where" not in text
    assert "](" not in text
    assert "`" not in text


def test_it_lies_beside_the_index(tmp_path: Path) -> None:
    context = context_over(CountingStore(), tmp_path)
    index = build_site(context)
    page = (index.parent / "planned-changes.html").read_text()
    assert context.store.get(report_key(PLAN)).decode() == page
    assert 'href="planned-changes.html"' in index.read_text()
    assert 'href="index.html"' in page
