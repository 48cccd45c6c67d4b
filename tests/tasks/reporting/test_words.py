"""The words of a verdict: each condition states its numbers, also where the page samples do not reach."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.reporting.words.conditions import condition, condition_sentence, recorded_condition
from validation.records import Gate


def gate(name: str, **fields: Any) -> Gate:
    known = {"value": 0.02, "low": -0.01, "high": 0.05, "bound": 0.0, "level": 0.0021, "passed": False, "sentence": ""}
    return Gate(name=name, **known | fields)


@pytest.mark.parametrize(
    ("judged", "facts"),
    [
        (gate("superior balanced accuracy"), ["balanced accuracy", "2.00 points higher", "1.00 points lower"]),
        (gate("superior balanced accuracy", value=0.0), ["balanced accuracy", "unchanged"]),
        (gate("superior balanced accuracy", low=-1.0), ["2.00 points higher", "too few patients"]),
        (gate("sensitivity not worse", bound=-0.015), ["sensitivity", "up to 1.50 points lower is tolerated"]),
        (gate("sensitivity not worse", bound=-0.0), ["sensitivity", "must be higher"]),
        (gate("specificity not worse", value=None, low=None), ["specificity", "cannot be compared"]),
        (gate("sensitivity not worse than the reference"), ["sensitivity against the reference", "2.00 points higher"]),
        (gate("AUC floor", value=0.91, low=0.89, bound=0.9, level=None), ["AUC", "0.9100", "0.8900", "0.9000"]),
        (gate("AUC floor", value=None, bound=0.9, level=None), ["AUC", "not defined", "0.9000"]),
        (gate("judging patients", value=1_004, bound=1_200, level=None), ["1,004 patients", "1,200"]),
        (gate("judging Uninfected cells", value=4, bound=25, level=None), ["4 Uninfected cells", "25"]),
        (gate("patients with a disagreement", value=1, bound=9, level=None), ["1 patient,", "9"]),
        (
            gate("effective patients, specificity not worse than the reference", value=6.94, bound=8.2, level=None),
            ["specificity against the reference", "6.9", "8.2"],
        ),
        (gate("a gate of another program", sentence="what it said then"), ["what it said then"]),
    ],
)
def test_a_condition_states_its_numbers(judged: Gate, facts: list[str]) -> None:
    for fact in facts:
        assert fact in condition(judged)
        assert fact[1:] in condition_sentence(judged)
    assert condition_sentence(judged)[0].isupper() or condition_sentence(judged)[0].isdigit()
    assert condition_sentence(judged).endswith(".")


def test_a_recorded_condition_names_the_level_of_its_test() -> None:
    assert "level 0.0021" in recorded_condition(gate("superior balanced accuracy"))
    assert "level" not in recorded_condition(gate("AUC floor", level=None))
