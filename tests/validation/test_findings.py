"""Reasons and checks: each explained, each with a cost that a setting can change within what makes sense."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from validation.batch.totals import limits
from validation.findings import CHECKS, REASONS, severity_of, with_severities
from validation.records import Finding
from validation.rules import DataRules


@pytest.mark.parametrize("name", REASONS)
def test_every_reason_is_explained(name: str) -> None:
    reason = REASONS[name]
    assert reason.meaning
    assert reason.advice
    assert not (reason.unusable and reason.severity == "warn")


def test_every_check_of_totals_has_limits_and_a_cost() -> None:
    of_images = {"labels are known classes", "no two images have the same pixels", "image width", "image height"}
    assert set(limits(DataRules())) == set(CHECKS) - of_images


@pytest.mark.parametrize(
    "severities",
    [
        {"out of focus": "reject"},
        {"truncated": "stop"},
        {"class ratio is comfortable": "stop"},
        {"image width": "warn"},
    ],
)
def test_a_setting_changes_what_something_costs(severities: dict[str, str]) -> None:
    assert DataRules.model_validate({"severities": severities}).severities == severities


@pytest.mark.parametrize(
    ("severities", "message"),
    [
        ({"out of fokus": "warn"}, "neither a reason nor a check"),
        ({"truncated": "warn"}, "leaves nothing to train on"),
        ({"duplicate": "warn"}, "leaves nothing to train on"),
        ({"image width": "reject"}, "can warn or stop"),
        ({"out of focus": "loud"}, "Input should be"),
    ],
)
def test_an_invalid_severity_is_refused(severities: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataRules.model_validate({"severities": severities})


def test_findings_cost_what_the_settings_say_else_the_default() -> None:
    findings = [Finding(reason="out of focus", key="a", detail=""), Finding(reason="truncated", key="b", detail="")]
    assert [f.severity for f in with_severities(findings, {})] == ["warn", "reject"]
    assert [f.severity for f in with_severities(findings, {"out of focus": "stop"})] == ["stop", "reject"]
    assert severity_of("near duplicate", {}) == "warn"
