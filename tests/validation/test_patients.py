"""Patients: read from awkward names, and on one side for ever."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from validation.patients import patient_of, side_of
from validation.rules import DEFAULT_PATIENT_PATTERN, SplitRules

RULES = SplitRules()
NAMES = [f"C{i}P{i * 7}" for i in range(10_000)]
steady = settings(deadline=None, derandomize=True, max_examples=200)


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("C100P61ThinF_IMG_20150918_144104_cell_162.png", "C100P61"),
        ("C60P21thinF_IMG_20150804_113602_cell_7.png", "C60P21"),
        ("C1_thinF_IMG_20150604_104722_cell_123.png", "C1"),
        ("C37BP2_thinF_IMG_20150620_131334a_cell_4.png", "C37BP2"),
        ("C3thin_original_IMG_20150608_162835_cell_1.png", "C3"),
        ("C39P4thinF_original_IMG_20150622_110352_cell_6.png", "C39P4"),
        ("C47P8thin_Original_Motic_IMG_20150714_093512_cell_171.png", "C47P8"),
        ("C47P8thinOriginalOlympusCX21_IMG_20150717_174222_cell_159.png", "C47P8"),
        ("C5NTHIN_IMG.png", "C5N"),
        ("labeled/Parasitized/C33P1thinF_IMG_cell_1.png", "C33P1"),
        ("thinly/sliced/C33P1thinF_IMG_cell_1.png", "C33P1"),
        ("Ünal_7thinF.png", "Ünal_7"),
        ("thin_original.png", None),
        ("_thinF.png", None),
        ("cell_162.png", None),
        ("thinF/cell_162.png", None),
        ("", None),
    ],
)
def test_the_patient_is_the_part_before_thin_in_any_case(name: str, patient: str | None) -> None:
    assert patient_of(name, DEFAULT_PATIENT_PATTERN) == patient


@pytest.mark.parametrize(
    ("name", "patient"),
    [("site-4_P017_cell_3.png", "P017"), ("P017.png", "P017"), ("x_P017.png", None), ("site-4_.png", None)],
)
def test_a_pattern_of_ones_own_is_matched_at_the_start(name: str, patient: str | None) -> None:
    assert patient_of(name, r"(?:site-\d+_)?(P\d+)") == patient


def test_a_group_that_takes_no_part_is_no_patient() -> None:
    assert patient_of("cell_3.png", r"(?:(P\d+)_)?cell") is None


@steady
@given(st.text(max_size=40))
@example("a\nthin")
def test_any_name_gives_a_patient_that_it_contains_or_none(name: str) -> None:
    patient = patient_of(name, DEFAULT_PATIENT_PATTERN)
    assert patient is None or (patient and name.rsplit("/", 1)[-1].startswith(patient))


def test_sides_are_what_they_always_were() -> None:
    # A patient who moved from the holdout to training would flatter every model from then on.
    known = {"C100P61": "train", "C1": "train", "C47P8": "train", "C33P1": "holdout", "C130P91": "holdout"}
    assert {patient: side_of(patient, RULES) for patient in known} == known


def test_another_process_puts_everybody_on_the_same_side() -> None:
    code = (
        "import json, sys; from validation.patients import side_of; from validation.rules import SplitRules\n"
        "print(json.dumps([side_of(name, SplitRules()) for name in json.load(sys.stdin)]))"
    )
    # From the last to the first, with another seed for Python's own hashes.
    there = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(NAMES[999::-1]), env={**os.environ, "PYTHONHASHSEED": "77"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(there.stdout)[::-1] == [side_of(name, RULES) for name in NAMES[:1_000]]


@steady
@given(st.permutations(NAMES[:12]), st.integers(0, 12))
def test_no_patient_changes_sides_whatever_the_order_of_arrival(order: list[str], arrived: int) -> None:
    tonight = {name: side_of(name, RULES) for name in order[:arrived]}
    later = {name: side_of(name, RULES) for name in order}
    assert tonight.items() <= later.items()
    assert later == {name: side_of(name, RULES) for name in NAMES[:12]}


@pytest.mark.parametrize(
    "rules", [RULES, SplitRules(generation="g2"), SplitRules(train=0.5, validation=0.2)], ids=["g1", "g2", "50-20-30"]
)
def test_shares_are_about_right_over_many_names(rules: SplitRules) -> None:
    found = Counter[str](side_of(name, rules) for name in NAMES)
    expected = {
        "train": rules.train,
        "validation": rules.validation,
        "holdout": 1 - rules.train - rules.validation,
    }
    for side, share in expected.items():
        # Four standard deviations of a share in 10,000 draws are 0.02 at most.
        assert found[side] / len(NAMES) == pytest.approx(share, abs=0.02)


def test_a_new_generation_draws_a_new_holdout() -> None:
    def holdout(generation: str) -> set[str]:
        return {name for name in NAMES if side_of(name, SplitRules(generation=generation)) == "holdout"}

    old, new = holdout("g1"), holdout("g2")
    # Independent draws share 0.15 of each other's patients.
    assert len(old & new) / len(old) == pytest.approx(0.15, abs=0.04)


def test_a_smaller_training_share_removes_no_patient_from_the_holdout() -> None:
    for name in NAMES[:2_000]:
        if side_of(name, RULES) == "holdout":
            assert side_of(name, SplitRules(train=0.6, validation=0.15)) == "holdout"


def test_a_cell_without_a_patient_is_for_training_only() -> None:
    assert {side_of(None, SplitRules(generation=f"g{i}")) for i in range(40)} == {"train"}
