"""Data Docs: what Great Expectations found, on one page that loads nothing and runs nothing."""

from __future__ import annotations

import re
import warnings

import pandas as pd
import pytest

from validation.batch.data_docs import data_docs_page
from validation.batch.expectations import check_batch
from validation.batch.totals import totals
from validation.records import NEGATIVE, POSITIVE
from validation.rules import DataRules

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def page() -> str:
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("GX_ANALYTICS_ENABLED", "false")
        warnings.simplefilter("ignore")
        import great_expectations.expectations  # noqa: F401
    facts = pd.DataFrame(
        {
            "label": [POSITIVE] * 70 + [NEGATIVE] * 289 + ["<script>alert(1)</script>"],
            "patient": [f"P{i % 9}" for i in range(360)],
            "pixels": [f"{i:064x}" for i in range(360)],
            "width": [*[100] * 359, 5_003],
            "height": 100,
        }
    )
    rules = DataRules()
    judged = check_batch(facts, totals(facts, images=400), rules)
    return data_docs_page(judged.results, title="Validation <b>").decode()


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_it_shows_what_was_expected_and_what_was_found(page: str) -> None:
    text = text_of(page)
    assert "Every accepted image" in text
    assert "The batch as a whole" in text
    assert "values must be greater than or equal to 16.0 and less than or equal to 4096.0" in text
    assert "5003" in text
    assert "Parasitized cells: at least" in text
    assert "(1 of 360: 5003)" in text
    # Met and not met are shown by a word, not by a colour alone.
    assert text.count("\u2713 met") > 5
    assert text.count("\u2717 not met") >= 2


def test_it_loads_nothing_and_runs_nothing(page: str) -> None:
    assert not re.search(r"<script|<link|<img|<iframe|src=|url\(|@import|\son\w+=", page)
    assert re.findall(r"href=\S+", page) == ['href="../reports/index.html">All']
    assert not re.search(r"https?://", page)
    assert "default-src 'none'" in page


def test_hostile_text_is_text(page: str) -> None:
    assert "Validation &lt;b&gt;" in page
    assert "alert(1)" not in page or "&lt;script" in page


def test_every_id_is_unique(page: str) -> None:
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
