"""The checks of a batch: each shortfall is found, reported with its numbers, and decisive or not."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import pandas as pd
import pytest

from validation.batch.expectations import check_batch
from validation.batch.totals import totals
from validation.records import NEGATIVE, POSITIVE, Check
from validation.rules import DataRules

pytestmark = pytest.mark.thorough

RULES = DataRules(min_cells_per_class=10, min_patients_per_class=3)


@pytest.fixture(scope="module", autouse=True)
def _great_expectations() -> None:
    """Imported once, without network; only its import may warn (of modules that it should no longer use)."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("GX_ANALYTICS_ENABLED", "false")
        warnings.simplefilter("ignore")
        import great_expectations.expectations  # noqa: F401


def batch(positives: int = 30, negatives: int = 30, patients: int = 5, without_patient: int = 0) -> pd.DataFrame:
    """One row an accepted image; cells of both classes go round the patients."""
    labels = [POSITIVE] * positives + [NEGATIVE] * negatives
    count = len(labels)
    return pd.DataFrame(
        {
            "label": labels,
            "patient": ["" if i < without_patient else f"P{i % patients}" for i in range(count)],
            "pixels": [f"{i:064x}" for i in range(count)],
            "width": 120,
            "height": 110,
        }
    )


def judged(facts: pd.DataFrame, *, images: int, rules: DataRules = RULES) -> tuple[Check, ...]:
    return check_batch(facts, totals(facts, images=images), rules).checks


def failed(checks: tuple[Check, ...]) -> dict[str, str]:
    """Name -> severity of the checks that did not hold."""
    return {check.name: check.severity for check in checks if not check.passed}


def observed(checks: tuple[Check, ...], name: str) -> str:
    return next(check.observed for check in checks if check.name == name)


def expected(checks: tuple[Check, ...], name: str) -> str:
    return next(check.expected for check in checks if check.name == name)


def test_a_good_batch_meets_all_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert tempfile.gettempdir() == str(tmp_path)
    checks = judged(batch(1_200, 1_300), images=2_500, rules=RULES)
    assert failed(checks) == {}
    assert len({check.name for check in checks}) == len(checks) == 13
    assert observed(checks, "Uninfected cells") == "1,300"
    assert observed(checks, "patients with Parasitized cells") == "5"
    assert observed(checks, "image width") == "all 2,500 images fit"
    assert observed(checks, "share of rejected images") == "0"
    assert expected(checks, "labels are known classes") == "one of Parasitized, Uninfected"
    assert expected(checks, "image width") == "16 to 4,096"
    assert expected(checks, "class ratio, larger over smaller") == "at most 20"
    assert expected(checks, "share of rejected images") == "at most 0.25"
    assert list(tmp_path.iterdir()) == []
    # Its progress bars would fill a night's log.
    assert capfd.readouterr() == ("", "")


def test_a_missing_class_is_decisive_and_said_in_words() -> None:
    checks = judged(batch(positives=0, negatives=60), images=60, rules=RULES)
    assert failed(checks) == {
        "Parasitized cells": "invalid",
        "patients with Parasitized cells": "invalid",
        "class ratio, larger over smaller": "invalid",
        "class ratio is comfortable": "warn",
    }
    assert observed(checks, "Parasitized cells") == "0"
    assert expected(checks, "Parasitized cells") == "at least 10"
    assert observed(checks, "class ratio, larger over smaller") == "one class is missing"


def test_too_few_patients_are_decisive_however_many_cells_they_have() -> None:
    checks = judged(batch(300, 300, patients=2), images=600, rules=RULES)
    assert failed(checks) == {
        "patients with Parasitized cells": "invalid",
        "patients with Uninfected cells": "invalid",
    }
    assert failed(judged(batch(300, 300, patients=3), images=600, rules=RULES)) == {}


def test_cells_without_a_patient_are_no_patient_and_more_than_a_few_are_told() -> None:
    checks = judged(batch(positives=30, negatives=30, without_patient=30), images=60, rules=RULES)
    assert failed(checks) == {
        "patients with Parasitized cells": "invalid",
        "share of images without a patient": "warn",
    }
    assert observed(checks, "patients with Parasitized cells") == "0"
    assert observed(checks, "share of images without a patient") == "0.5"


@pytest.mark.parametrize(
    ("positives", "negatives", "found"),
    [
        (30, 90, {}),
        (90, 30, {}),
        (30, 91, {"class ratio is comfortable": "warn"}),
        (400, 20, {"class ratio is comfortable": "warn"}),
        (401, 20, {"class ratio is comfortable": "warn", "class ratio, larger over smaller": "invalid"}),
    ],
)
def test_a_lopsided_batch_is_warned_of_before_it_is_refused(
    positives: int, negatives: int, found: dict[str, str]
) -> None:
    assert failed(judged(batch(positives, negatives), images=positives + negatives, rules=RULES)) == found


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (100, {}),
        (103, {"share of rejected images is comfortable": "warn"}),
        (133, {"share of rejected images is comfortable": "warn"}),
        (134, {"share of rejected images is comfortable": "warn", "share of rejected images": "invalid"}),
    ],
)
def test_many_rejected_images_are_warned_of_before_they_are_decisive(images: int, found: dict[str, str]) -> None:
    # 100 are left: 3 of 103 are more than 2%, 33 of 133 less than 25%, 34 of 134 more.
    assert failed(judged(batch(50, 50), images=images, rules=RULES)) == found


def test_odd_images_are_counted_not_summed_up() -> None:
    facts = batch(600, 600)
    facts.loc[:2, "width"] = 5_000
    facts.loc[7, "height"] = 3
    facts.loc[9, "label"] = "Thumbs"
    facts.loc[20:21, "pixels"] = "same"
    checks = judged(facts, images=1_200, rules=RULES)
    assert failed(checks) == dict.fromkeys(
        ["labels are known classes", "no two images have the same pixels", "image width", "image height"], "invalid"
    )
    assert observed(checks, "image width") == "3 of 1,200 images do not fit"
    assert observed(checks, "no two images have the same pixels") == "2 of 1,200 images do not fit"
    assert expected(checks, "no two images have the same pixels") == "unique"


def test_a_single_image_is_judged_like_any_other_number() -> None:
    checks = judged(batch(1, 0), images=1, rules=RULES)
    assert observed(checks, "labels are known classes") == "all 1 images fit"
    assert observed(checks, "Parasitized cells") == "1"
    assert "labels are known classes" not in failed(checks)
    assert failed(checks)["Uninfected cells"] == "invalid"


def test_no_image_at_all_is_judged_too() -> None:
    nothing_left = failed(judged(batch(0, 0), images=40, rules=RULES))
    assert nothing_left["Parasitized cells"] == nothing_left["share of rejected images"] == "invalid"
    assert failed(judged(batch(0, 0), images=0, rules=RULES))["Uninfected cells"] == "invalid"


def test_large_numbers_are_written_out() -> None:
    checks = judged(batch(), images=60, rules=DataRules(min_cells_per_class=2_000_001))
    assert expected(checks, "Parasitized cells") == "at least 2,000,001"


def test_totals_count_patients_once_a_class() -> None:
    row = totals(batch(30, 60, patients=5, without_patient=10), images=100)
    assert row["Parasitized cells"] == 30
    assert row["Uninfected cells"] == 60
    assert row["patients with Parasitized cells"] == row["patients with Uninfected cells"] == 5
    assert row["class ratio is comfortable"] == row["class ratio, larger over smaller"] == 2
    assert row["share of rejected images"] == pytest.approx(0.1)
    assert row["share of images without a patient"] == pytest.approx(10 / 90)
