"""Patients: read from awkward names, and in one fold for ever."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from validation.patients import FOLDS, NO_FOLD, fold_of, is_tuning, patient_of
from validation.rules import DEFAULT_PATIENT_PATTERN

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


def test_roles_are_what_they_always_were() -> None:
    # A patient who moved to another fold would flatter every model from then on.
    known = {"C100P61": 4, "C1": 4, "C47P8": 4, "C33P1": 2, "C130P91": 3, "C8P8": 3}
    assert {patient: fold_of(patient) for patient in known} == known
    tuning = ["C8P56", "C11P77", "C24P168", "C28P196", "C36P252", "C39P273"]
    assert [name for name in NAMES[:60] if is_tuning(name, 0)] == tuning


def roles(name: str) -> list[int]:
    return [fold_of(name), *(int(is_tuning(name, member)) for member in range(FOLDS))]


def test_another_process_gives_everybody_the_same_roles() -> None:
    code = (
        "import json, sys; from validation.patients import FOLDS, fold_of, is_tuning\n"
        "roles = lambda name: [fold_of(name), *(int(is_tuning(name, member)) for member in range(FOLDS))]\n"
        "print(json.dumps([roles(name) for name in json.load(sys.stdin)]))"
    )
    # From the last to the first, with another seed for Python's own hashes.
    there = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(NAMES[999::-1]), env={**os.environ, "PYTHONHASHSEED": "77"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(there.stdout)[::-1] == [roles(name) for name in NAMES[:1_000]]


def test_folds_are_about_equal_over_many_names() -> None:
    found = Counter(fold_of(name) for name in NAMES)
    for fold in range(FOLDS):
        # Four standard deviations of a share in 10,000 draws are 0.016.
        assert found[fold] / len(NAMES) == pytest.approx(1 / FOLDS, abs=0.016)


@pytest.mark.parametrize("member", range(FOLDS))
def test_an_eighth_of_the_other_patients_tune_each_member(member: int) -> None:
    outside = [name for name in NAMES if fold_of(name) != member]
    tuning = {name for name in NAMES if is_tuning(name, member)}
    assert len(tuning) / len(outside) == pytest.approx(1 / 8, abs=0.015)
    assert tuning <= set(outside)
    others = {name for name in NAMES if is_tuning(name, (member + 1) % FOLDS)}
    assert len(others & tuning) < len(tuning) / 4


def test_a_cell_without_a_patient_is_in_no_fold_and_tunes_nobody() -> None:
    assert fold_of("") == NO_FOLD
    assert not any(is_tuning("", member) for member in range(FOLDS))
