"""What a report adds to the gate's metrics: the same values as scikit-learn's, with patients as the unit."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, f1_score, matthews_corrcoef, precision_score, roc_curve

from validation.statistics.metrics import Scored
from validation.statistics.report_metrics import (
    EXTRA_NAMES,
    calibration_curve,
    calibration_error,
    classification_text,
    extra_metrics,
    sensitivity_at,
)


def scored(cells: int = 400, patients: int = 10, seed: int = 1) -> Scored:
    rng = np.random.default_rng(seed)
    owners = np.sort(rng.integers(patients, size=cells))
    labels = rng.random(cells) < 0.5
    probabilities = np.clip(np.where(labels, 0.8, 0.2) + rng.normal(0, 0.25, cells), 0, 1)
    return Scored(labels, probabilities, owners, 0.5)


def test_the_values_are_scikit_learns() -> None:
    made = scored()
    found = extra_metrics(made)
    called = made.probabilities >= 0.5
    expected = {
        "precision": precision_score(made.labels, called),
        "f1": f1_score(made.labels, called),
        "mcc": matthews_corrcoef(made.labels, called),
        "brier": brier_score_loss(made.labels, made.probabilities),
    }
    for name, value in expected.items():
        interval = found[name]
        assert interval is not None
        assert interval.value == pytest.approx(value)
        assert interval.low <= interval.value <= interval.high


def test_the_sensitivity_at_a_specificity_is_that_of_the_roc_curve() -> None:
    made = scored(2_000)
    false_alarms, found, _ = roc_curve(made.labels, made.probabilities, drop_intermediate=False)
    for specificity in (0.99, 0.999):
        assert sensitivity_at(made, specificity) == found[false_alarms <= 1 - specificity].max()
    one_class = Scored(np.ones(5, bool), np.linspace(0, 1, 5), np.zeros(5, np.int64), 0.5)
    assert sensitivity_at(one_class, 0.99) is None


def test_a_hundredth_of_a_hundred_cells_is_one() -> None:
    labels = np.arange(110) >= 100
    probabilities = np.concatenate([np.zeros(99), [0.9], np.full(10, 0.5)])
    assert sensitivity_at(Scored(labels, probabilities, np.zeros(110, np.int64), 0.5), 0.99) == 1
    assert sensitivity_at(Scored(labels, probabilities, np.zeros(110, np.int64), 0.5), 0.999) == 0


def test_the_calibration_error_is_the_mean_gap_over_bins_of_equal_mass() -> None:
    probabilities = np.repeat([0.1, 0.9], 50)
    labels = np.concatenate([np.arange(50) < 15, np.arange(50) < 45])  # 0.3 where 0.1 was said; 0.9 where 0.9 was
    made = Scored(labels, probabilities, np.arange(100) % 5, 0.5)
    assert calibration_error(made) == pytest.approx((0.2 + 0.0) / 2)
    bins = calibration_curve(made)
    assert [b.cells for b in bins] == [50, 50]
    assert [b.predicted for b in bins] == pytest.approx([0.1, 0.9])
    assert [b.observed.value for b in bins] == pytest.approx([0.3, 0.9])


def test_cells_of_one_patient_are_not_more_evidence() -> None:
    """The same cells ten times over, in the same patients: the intervals stay as wide as they were."""
    one = scored(cells=100)
    ten = Scored(np.tile(one.labels, 10), np.tile(one.probabilities, 10), np.tile(one.patients, 10), one.threshold)
    for name in ("precision", "f1", "mcc", "brier"):
        before, after = extra_metrics(one)[name], extra_metrics(ten)[name]
        assert before is not None
        assert after is not None
        assert (after.low, after.high) == pytest.approx((before.low, before.high))


@pytest.mark.parametrize("infected", [True, False])
def test_what_one_class_alone_cannot_tell_is_undefined(infected: bool) -> None:
    made = Scored(np.full(20, infected), np.full(20, 0.1), np.arange(20) % 4, 0.5)
    found = extra_metrics(made)
    assert (found["f1"], found["mcc"], found["precision"]) == (None, None, None)
    assert found["brier"] is not None


def test_no_cells_have_no_metrics() -> None:
    nothing = Scored(np.zeros(0, bool), np.zeros(0), np.zeros(0, np.int64), 0.5)
    assert extra_metrics(nothing) == dict.fromkeys(EXTRA_NAMES)
    assert calibration_curve(nothing) == []
    assert calibration_error(nothing) is None


def test_a_class_without_cells_is_not_a_number_in_the_classification_report() -> None:
    text = classification_text(np.zeros(4, bool), np.array([False, False, True, False]), ("Uninfected", "Parasitized"))
    assert "nan" in next(line for line in text.splitlines() if "Parasitized" in line)
