"""The verdict on Prefect's own pages: there under its fixed key, harmless, and never the end of a night."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from infra.settings.groups import SiteSettings
from infra.store.keys import report_key
from tasks.champion.approval import request_approval
from tasks.reporting.publish import KEY, LINK_KEY, markdown, night_links, note_in_registry, publish_artifacts
from tests import ROOT
from tests.builders import (
    CountingStore,
    channel_model,
    context_over,
    made_up_candidate,
    made_up_decision,
    registry_in,
)
from tests.tasks.reporting.samples import field_report
from tests.tasks.reporting.test_index import a_night
from tests.tasks.reporting.test_page import HOSTILE
from validation.records import Verdict

pytestmark = pytest.mark.thorough

NIGHTS = """
import sys
from pathlib import Path
from prefect import flow
from tasks.reporting.publish import publish_task
from tests.builders import CountingStore, context_over
from tests.tasks.reporting.test_index import a_night
from validation.records import Verdict

@flow(name="nights")
def nights():
    for number, verdict in enumerate((Verdict.KEPT, Verdict.PROMOTED), start=1):
        publish_task(context_over(CountingStore(), Path(sys.argv[1])), a_night(number, verdict, champion_before="1"))

nights()
"""


@pytest.mark.server
def test_each_night_is_another_version_under_one_key(prefect_url: str, tmp_path: Path) -> None:
    # A separate process, as a night is: Prefect reads its environment once, and keeps its connections.
    wanted = {"artifacts": {"key": {"any_": [KEY]}}}
    before = len(httpx.post(f"{prefect_url}/artifacts/filter", json=wanted, trust_env=False, timeout=120).json())
    environment = {**os.environ, "PREFECT_API_URL": prefect_url, "PREFECT_HOME": str(tmp_path / "prefect")}
    subprocess.run([sys.executable, "-c", NIGHTS, str(tmp_path)], env=environment, cwd=ROOT, check=True, timeout=500)
    latest = httpx.get(f"{prefect_url}/artifacts/{KEY}/latest", trust_env=False, timeout=120).json()
    assert latest["type"] == "markdown"
    assert "## Promoted" in latest["data"]
    assert (
        len(httpx.post(f"{prefect_url}/artifacts/filter", json=wanted, trust_env=False, timeout=120).json())
        == before + 2
    )
    link = httpx.get(f"{prefect_url}/artifacts/{LINK_KEY}/latest", trust_env=False, timeout=120).json()
    assert f"http://127.0.0.1:8765/reports/{'d2' * 6}.html" in link["data"]


@pytest.mark.filterwarnings("ignore:Artifact creation outside of a flow")
def test_an_unreachable_server_costs_the_night_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    caplog.set_level(logging.WARNING)
    nowhere = {PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}
    with temporary_settings(nowhere):
        publish_artifacts(context_over(CountingStore(), tmp_path), a_night(1))
    assert "the verdict is not on Prefect's page" in caplog.text


def test_trainings_that_mlflow_cannot_write_cost_the_night_nothing(
    home: Path, empty_registry: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry = registry_in(home, empty_registry)
    context = context_over(CountingStore(), home)
    candidate, decision = made_up_candidate(channel_model()), made_up_decision()
    context.records.save(candidate, candidate.id)
    context.records.save(decision, decision.id)
    context.store.put(report_key(decision.id), b"<p>the report</p>")
    with sqlite3.connect(home / "mlflow.db") as database:
        database.execute("ALTER TABLE logged_models RENAME TO lost")  # what only trainings write to
    night = a_night(1, decision=decision.id, failed_trainings={})
    note_in_registry(context, night, registry)
    assert "tonight's trainings are not on MLflow's page" in caplog.text
    assert "the verdict is not on MLflow's page" not in caplog.text
    with sqlite3.connect(home / "mlflow.db") as database:
        database.execute("ALTER TABLE lost RENAME TO logged_models")
    caplog.clear()
    note_in_registry(context, night, registry)
    assert caplog.text == ""


def test_a_hostile_sentence_is_text() -> None:
    night = a_night(1, sentence=HOSTILE.rstrip("\ud800") + "[click](javascript:x)\n# big\n" + "x" * 100_000)
    shown = markdown(night)
    assert "\\<script\\>" in shown
    assert "\\[click\\]\\(javascript:x\\)" in shown
    assert "\n# big" not in shown
    assert len(shown) < 3_000


def test_a_first_champion_and_the_field_are_named() -> None:
    shown = markdown(a_night(1, Verdict.PROMOTED, field=field_report("sensitivity")))
    assert "## First champion" in shown
    assert "sensitivity of version 7 cannot be what was promised" in shown


def test_links_lead_to_the_report_where_it_is_served_and_to_the_form(tmp_path: Path) -> None:
    night = a_night(1, Verdict.AWAITING_APPROVAL)
    decision = made_up_decision(night.decision or "", verdict=Verdict.AWAITING_APPROVAL)
    context = context_over(CountingStore(), tmp_path)
    served = request_approval(context, decision).model_copy(
        update={"form_url": "https://prefect.example.org/x/run?p=1"}
    )
    assert night_links(context, night) == {"page": f"http://127.0.0.1:8765/reports/{night.decision}.html", "form": ""}
    context.records.save(served, decision.id)
    site = SiteSettings(address="https://reports.example.org/")
    named = replace(context, settings=context.settings.model_copy(update={"site": site}))
    links = night_links(named, night)
    assert links == {"page": f"https://reports.example.org/reports/{night.decision}.html", "form": served.form_url}
    assert f"[The report]({links['page']})" in markdown(night, links)
    assert f"[Approve or reject]({links['form']})" in markdown(night, links)
    off = replace(context, settings=context.settings.model_copy(update={"site": SiteSettings(port=0)}))
    page = night_links(off, night)["page"]
    assert page.endswith(f"/retraining/reports/{night.decision}.html")
    assert "The report" not in markdown(night, night_links(off, night))


def test_the_numbers_are_in_a_table() -> None:
    assert "| balanced accuracy | 0.9500 | 0.9400 to 0.9600 (95%) |" in markdown(a_night(1))
