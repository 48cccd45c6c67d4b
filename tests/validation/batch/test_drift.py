"""Drift: a batch that differs is reported however small, one that does not is not reported however large."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from validation.batch.drift import LABEL_SHARE, drift, sure_delta
from validation.batch.totals import tonight
from validation.records import NEGATIVE, POSITIVE
from validation.rules import DataRules

RNG = np.random.default_rng(20)
RULES = DataRules(night_images=10)


def cells(patients: int, each: int = 30, *, seed: int, **shift: Any) -> pd.DataFrame:
    """Return facts of cells whose patients differ by one unit, and whose cells differ by half of one."""
    rng = np.random.default_rng(seed)
    rows = []
    for patient in range(patients):
        own = {name: rng.normal(shift.get(name, 0.0)) for name in ("saturation", "brightness", "focus", "cell_pixels")}
        hue = rng.normal(358 + 10 * shift.get("hue", 0.0), 10)
        share = min(1.0, max(0.0, rng.normal(0.5 + shift.get("label", 0.0), 0.15)))
        for _ in range(each):
            measured = {name: value + rng.normal(0, 0.5) for name, value in own.items()}
            label = POSITIVE if rng.random() < share else NEGATIVE
            turned = (hue + rng.normal(0, 3)) % 360
            rows.append({"patient": f"{seed}-{patient}", "label": label, "hue": turned, **measured})
    return pd.DataFrame(rows)


REFERENCE = cells(60, seed=1)


def test_more_cells_of_alike_patients_are_no_drift_however_many() -> None:
    # 40,000 cells: any test of significance by cells would call their differences sure.
    found = drift(cells(20, each=2_000, seed=2), REFERENCE)
    assert max(abs(value) for value in found.values()) < RULES.warn_drift


@pytest.mark.parametrize(
    ("name", "shift"),
    [
        ("saturation", {"saturation": 2.5}),
        ("brightness", {"brightness": -2.5}),
        ("focus", {"focus": -2.5}),
        ("cell size", {"cell_pixels": 2.5}),
        ("hue", {"hue": 2.5}),
        (LABEL_SHARE, {"label": 0.4}),
    ],
)
def test_what_has_drifted_is_named_and_nothing_else(name: str, shift: dict[str, float]) -> None:
    found = drift(cells(20, 30, seed=3, **shift), REFERENCE)
    assert {other for other, value in found.items() if abs(value) > RULES.warn_drift} == {name}
    sign = -1 if min(shift.values()) < 0 else 1
    assert sign * found[name] > 0


def test_hues_on_both_sides_of_red_are_near() -> None:
    found = drift(cells(20, seed=4), REFERENCE)
    assert REFERENCE["hue"].max() > 350
    assert REFERENCE["hue"].min() < 10
    assert abs(found["hue"]) < 0.5


def test_few_patients_say_little() -> None:
    far, near = np.array([3.0]), np.array([1.5])
    reference = RNG.normal(size=60)
    assert sure_delta(near, reference) == 0
    assert 0 < (sure_delta(far, reference) or 0) < sure_delta(np.repeat(far, 20), reference)  # type: ignore[operator]


@pytest.mark.parametrize(("new", "reference"), [([], [1.0, 2.0, 3.0]), ([1.0], [1.0, 2.0]), ([1.0], [2.0, 2.0, 2.0])])
def test_what_cannot_be_compared_is_not(new: list[float], reference: list[float]) -> None:
    assert sure_delta(np.array(new), np.array(reference)) is None


@pytest.mark.thorough
def test_alike_patients_seldom_seem_to_drift() -> None:
    """The share of alike nights that are reported to have drifted in anything, at the setting's default."""
    fired = [
        max(abs(value) for value in drift(cells(8, each=10, seed=100 + night), REFERENCE).values()) > RULES.warn_drift
        for night in range(100)
    ]
    assert sum(fired) <= 2


def test_images_without_a_patient_are_left_out() -> None:
    strange = cells(20, seed=5, brightness=9).assign(patient="")
    found = drift(pd.concat([cells(20, seed=6), strange]), REFERENCE)
    assert abs(found["brightness"]) < RULES.warn_drift
    assert drift(strange, REFERENCE) == {}


def test_a_night_of_a_few_images_is_not_judged_on_its_own() -> None:
    night = cells(1, each=9, seed=7)
    assert tonight(night, images=9, rules=RULES, reference=REFERENCE) == {}
    judged = tonight(cells(1, each=10, seed=7), images=10, rules=RULES, reference=REFERENCE)
    assert judged["tonight: largest share of one patient"] == 1


def test_a_night_of_which_nothing_is_left_is_judged_by_that() -> None:
    nothing = REFERENCE.iloc[:0]
    assert tonight(nothing, images=20, rules=RULES, reference=REFERENCE) == {"tonight: share of rejected images": 1}


def test_one_patient_dominating_a_night_is_counted_among_all_new_images() -> None:
    night = pd.concat([cells(1, each=60, seed=8), cells(4, each=10, seed=9)])
    found = tonight(night, images=100, rules=RULES)
    assert found["tonight: largest share of one patient"] == pytest.approx(0.6)
    assert "tonight: drift of hue" not in found
