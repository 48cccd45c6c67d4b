"""The approval flow: a form that Prefect's server validates before it creates a run; it does what the command does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prefect.exceptions import ParameterTypeError
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools import validate
from prefect.utilities.schema_tools.validation import ValidationError

from flows.approve import approve_flow
from infra.settings.settings import load_settings
from tasks.champion.approval import request_approval
from tasks.champion.history import history
from tasks.context import Context
from tests.builders import channel_model, made_up_candidate, made_up_decision, registry_in
from validation.records import Verdict

pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("evidence_believed")]

SCHEMA = parameter_schema(approve_flow).model_dump()
GOOD = {"decision": "latest", "answer": "approve", "name": " Ann\tB ", "why": "looked at 40 cells"}


def test_the_form_asks_for_a_decision_one_of_two_answers_and_a_reason() -> None:
    properties = SCHEMA["properties"]
    assert list(properties) == ["decision", "answer", "name", "why"]
    assert SCHEMA["required"] == ["decision", "answer", "name", "why"]
    (enum,) = (part["enum"] for part in SCHEMA["definitions"].values() if "enum" in part)
    assert enum == ["approve", "reject"]
    assert all(properties[name]["description"] for name in properties)


@pytest.mark.parametrize(
    "wrong",
    [
        {"answer": "maybe"},
        {"answer": ""},
        {"name": " "},
        {"name": "x" * 101},
        {"why": ""},
        {"why": "   "},
        {"why": "x" * 1_001},
        {"decision": "../../etc"},
        {"decision": ""},
        {"decision": "12"},
    ],
)
def test_an_invalid_form_is_refused_before_a_run_is_created(wrong: dict[str, Any]) -> None:
    # What Prefect's server does with a deployment's parameters when they are enforced.
    validate(GOOD, SCHEMA, raise_on_error=True)
    with pytest.raises(ValidationError):
        validate({**GOOD, **wrong}, SCHEMA, raise_on_error=True)
    # The same checks in the flow, for calls that bypass the server.
    with pytest.raises(ParameterTypeError):
        approve_flow.validate_parameters({**GOOD, **wrong})


def test_a_form_with_a_part_missing_is_refused() -> None:
    for name in GOOD:
        with pytest.raises(ValidationError):
            validate({part: value for part, value in GOOD.items() if part != name}, SCHEMA, raise_on_error=True)


def test_the_flow_answers(home: Path, empty_registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.promote.reproduce", lambda *_, **__: "tried")
    monkeypatch.setattr("flows.opening.person", lambda: "ann@lab")
    registry = registry_in(home, empty_registry)
    context = Context.open(load_settings())
    model = channel_model()
    candidate = made_up_candidate(model)
    context.store.put(candidate.model_key, model)
    context.records.save(candidate, candidate.id)
    decision = made_up_decision(verdict=Verdict.AWAITING_APPROVAL)
    context.records.save(decision, decision.id)
    request_approval(context, decision)
    # The plain function: tests/flows/test_nights.py covers Prefect's server and its runs.
    arguments = approve_flow.validate_parameters({**GOOD, "decision": decision.id})
    assert approve_flow.fn(**arguments) == "1"
    (entry,) = history(context)
    assert (entry.action, entry.who, entry.why) == ("approved", "Ann B, ann@lab", GOOD["why"])
    champion = registry.champion()
    assert champion is not None
    assert champion.candidate == candidate.id
