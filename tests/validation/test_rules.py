"""Rules: what cannot be meant is refused by name, defaults included."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from validation.rules import DataRules, GateRules, Rules

each_group = pytest.mark.parametrize("group", [DataRules, GateRules])


@each_group
def test_the_defaults_are_allowed_when_written_out(group: type[Rules]) -> None:
    assert group.model_validate(group().model_dump()) == group()


@each_group
def test_an_unknown_name_is_refused(group: type[Rules]) -> None:
    with pytest.raises(ValidationError, match="sensitivty_margin"):
        group.model_validate({"sensitivty_margin": 0.02})


@each_group
def test_rules_do_not_change_during_a_night(group: type[Rules]) -> None:
    rules = group()
    for name in group.model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(rules, name, getattr(rules, name))


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        (r"(?i)(.*?)_?thin(", "not a valid regular expression"),
        (r"(?i).*thin", "exactly one group, the patient; it has 0"),
        (r"(C\d+)(P\d+)", "exactly one group, the patient; it has 2"),
    ],
)
def test_a_patient_pattern_that_names_no_patient_is_refused(pattern: str, problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        DataRules(patient_pattern=pattern)


def test_a_pattern_may_hold_groups_that_are_not_the_patient() -> None:
    assert DataRules(patient_pattern=r"(?:site-\d+_)?(P\d+)").patient_pattern == r"(?:site-\d+_)?(P\d+)"


@pytest.mark.parametrize("values", [{"min_pixels": 5_000}, {"max_pixels": 8}, {"min_pixels": 65, "max_pixels": 64}])
def test_limits_that_no_image_could_meet_are_refused(values: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match="no image could be accepted"):
        DataRules(**values)


def test_one_size_only_is_possible() -> None:
    assert DataRules(min_pixels=64, max_pixels=64).max_pixels == 64


@pytest.mark.parametrize(
    ("group", "values"),
    [
        (DataRules, {"max_class_ratio": 0.5}),
        (DataRules, {"max_rejected_share": 25}),
        (GateRules, {"error_budget": 5}),
        (GateRules, {"error_budget": 0}),
        (GateRules, {"looks": 0}),
        (GateRules, {"sensitivity_margin": -0.01}),
        (GateRules, {"min_auc": 90}),
        (GateRules, {"min_patients": 1}),
        (GateRules, {"resamples": 10}),
    ],
)
def test_percentages_and_other_impossible_values_are_refused(group: type[Rules], values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(values))):
        group(**values)
