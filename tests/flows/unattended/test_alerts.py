"""What an alert says, rendered as Prefect's server renders it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from flows.unattended.alerts import definitions
from infra.settings.groups import AlertSettings

pytestmark = pytest.mark.thorough

PAGE, FORM = "https://reports.example.org/reports/d.html", "https://prefect.example.org/run?parameters=%7B%22a%22%7D"


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ({"page": PAGE, "form": FORM, "report": "/home/d.html"}, f"It waits (report: {PAGE}; answer: {FORM})"),
        ({"page": PAGE, "form": "", "report": "/home/d.html"}, f"It waits (report: {PAGE})"),
        # A night of an earlier version, or one without a decision.
        ({"report": "/home/d.html"}, "It waits (report: /home/d.html)"),
        ({"page": "", "form": "", "report": None}, "It waits (report: none)"),
    ],
)
def test_an_alert_of_a_night_links_its_report_and_the_form(payload: dict[str, str], said: str) -> None:
    from prefect.server.utilities.user_templates import render_user_template_sync

    [waiting] = [one for one in definitions(AlertSettings(), "block") if one["name"] == "malaria: awaiting approval"]
    template = waiting["actions"][-1]["payload"]
    event = SimpleNamespace(payload={"sentence": "It waits", **payload})
    shown = json.loads(render_user_template_sync(template, {"event": event}))
    assert shown == {"alert": "awaiting approval", "text": f"malaria: awaiting approval: {said}"}
