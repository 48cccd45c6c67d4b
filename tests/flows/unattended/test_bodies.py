"""Every alert in the shape that each service accepts, whatever its words are."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import ValidationError

from flows.unattended.alerts import as_json, definitions
from flows.unattended.bodies import headers
from infra.settings.groups import AlertSettings
from tests.flows.unattended.services import SERVICES, TOKEN, services

pytestmark = pytest.mark.thorough

PAGE, FORM = "https://reports.example.org/reports/d.html", "https://prefect.example.org/run?parameters=%7B%22a%22%7D"
BLOCK = "6f1c6c9e-9df8-4f8c-8a9e-3c0d5d7d7d7d"
NASTY = 'it said "why" {{ 1 / 0 }} <!channel> & \\ {% endset %}\nand <b>more</b>'


def settings(service: str) -> AlertSettings:
    mail: dict[str, Any] = {"mail_from": "night@example.org", "mail_to": "a@example.org, b@example.org", "token": TOKEN}
    return AlertSettings(webhook="http://127.0.0.1/", service=service, **(mail if service == "sendgrid" else {}))


@pytest.mark.parametrize("service", SERVICES)
def test_every_alert_is_accepted_with_any_words(service: str) -> None:
    said = {"sentence": NASTY, "report": None, "validated_state": {"message": NASTY}}
    event = {"resource": {"name": NASTY}, "payload": said}
    given = settings(service)
    found = [as_json(automation) for automation in definitions(given, BLOCK)]
    with services() as there:
        for automation in found:
            template = automation["actions"][-1]["payload"]
            # As Prefect's server renders it.
            body = ImmutableSandboxedEnvironment(autoescape=False).from_string(template).render(event=event)
            httpx.post(f"{there.url}/{service}", content=body, headers=headers(given), trust_env=False)
    assert there.refused == []
    texts = there.accepted[service]
    assert [text.partition(": ")[2].partition(": ")[0] for text in texts] == [
        automation["name"].removeprefix("malaria: ") for automation in found
    ]
    assert sum(NASTY in text for text in texts) == len(found) - 1  # a night that did not come has no words of its own


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ({"page": PAGE, "form": FORM, "report": "/home/d.html"}, f"It waits (report: {PAGE}; answer: {FORM})"),
        ({"page": PAGE, "form": "", "report": "/home/d.html"}, f"It waits (report: {PAGE})"),
        # An event of an earlier version, and a night without a decision.
        ({"report": "/home/d.html"}, "It waits (report: /home/d.html)"),
        ({"page": "", "form": "", "report": None}, "It waits (report: none)"),
    ],
)
def test_an_alert_of_a_night_links_its_report_and_the_form(payload: dict[str, str], said: str) -> None:
    found = {one.name: as_json(one) for one in definitions(settings("json"), BLOCK)}
    template = found["malaria: awaiting approval"]["actions"][-1]["payload"]
    event = {"payload": {"sentence": "It waits", **payload}}
    shown = json.loads(ImmutableSandboxedEnvironment(autoescape=False).from_string(template).render(event=event))
    assert shown == {"alert": "awaiting approval", "text": f"malaria: awaiting approval: {said}"}


def test_without_a_webhook_an_alert_only_shows_on_the_page() -> None:
    for automation in definitions(AlertSettings(), None):
        assert "call-webhook" not in {action.type for action in automation.actions}


def test_equal_definitions_are_equal_texts() -> None:
    """Sets have another order in each process; an automation that seems changed is written again."""
    [first, second] = [as_json(definitions(settings("json"), BLOCK)[0]) for _ in range(2)]
    assert first == second
    assert first["trigger"]["expect"] == sorted(first["trigger"]["expect"])


def test_an_e_mail_without_its_addresses_is_a_mistake_in_the_settings() -> None:
    with pytest.raises(ValidationError, match="needs mail_from, mail_to and token"):
        AlertSettings(service="sendgrid")
