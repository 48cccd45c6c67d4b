"""The index of all decisions: newest first, with what people did afterwards, whole without its script."""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import timedelta
from pathlib import Path

import pytest

from infra.store.keys import INDEX, history_key, record_key, report_key
from infra.store.memory import MemoryStore
from tasks.champion.approval import request_approval
from tasks.context import Context
from tasks.reporting.index import build_site, entries, render_index
from tests.builders import NOON, CountingStore, context_over, made_up_decision
from tests.tasks.reporting.samples import field_report
from tests.tasks.reporting.test_page import HOSTILE, text_of
from tests.tasks.test_report import night_of
from validation.records import ApprovalAnswer, ApprovalRequest, Interval, Night, Promotion, Verdict

pytestmark = pytest.mark.thorough


def a_night(number: int, verdict: Verdict = Verdict.KEPT, value: float = 0.95, **changed: object) -> Night:
    night = night_of(made_up_decision(f"d{number}" * 6, verdict=verdict), number)
    figures = dict.fromkeys(("balanced_accuracy", "sensitivity", "specificity", "auc"))
    metrics = {name: Interval(value=value, low=value - 0.01, high=value + 0.01) for name in figures}
    at = NOON + timedelta(days=number)
    return night.model_copy(update={"metrics": metrics, "started_at": at, "sentence": f"night {number}", **changed})


def remembered(home: Path, *nights: Night) -> Context:
    context = context_over(CountingStore(), home)
    for night in nights:
        context.records.save(night, night.id)
    return context


def test_all_decisions_are_listed_newest_first_with_their_numbers(tmp_path: Path) -> None:
    context = remembered(tmp_path, a_night(2, value=0.961), a_night(1, Verdict.PROMOTED), a_night(3, metrics={}))
    path = build_site(context)
    page = path.read_text()
    assert context.store.get(report_key(INDEX)) == path.read_bytes()
    assert path.parent == context.workspace.reports
    assert [e.night.sentence for e in entries(context)] == ["night 3", "night 2", "night 1"]
    assert re.findall(r'href="(d\d[^"]*)"', page) == [f"{f'd{n}' * 6}.html" for n in (3, 2, 1)]
    assert "96.1% 95.1–97.1" in text_of(page)
    assert "Balanced accuracy of 2 challengers, 95.0% to 96.1%." in page
    assert (page.count('class="made"'), page.count('class="open"')) == (1, 1)


def test_the_champion_in_use_is_shown_with_what_was_promised_and_found(tmp_path: Path) -> None:
    nights = (
        a_night(1, champion_after="7", field=field_report("specificity")),
        a_night(2, champion_after="7", field=field_report()),
        a_night(3, champion_after="7"),
    )
    text = text_of(build_site(remembered(tmp_path / "same", *nights)).read_text())
    assert "version 7 since its promotion" in text
    assert "2026-02 31 91.2% 95.1%" in text
    assert "worse than promised" not in text  # the newest night's findings
    replaced = (*nights, a_night(4, Verdict.PROMOTED, champion_before="7", champion_after="8"))
    assert "since its promotion" not in text_of(build_site(remembered(tmp_path / "next", *replaced)).read_text())


def test_a_first_champion_is_no_tested_promotion(tmp_path: Path) -> None:
    first, tested = a_night(1, Verdict.PROMOTED), a_night(2, Verdict.PROMOTED, champion_before="1")
    text = text_of(build_site(remembered(tmp_path, first, tested)).read_text())
    assert text.count("✓ Promoted") == 1
    assert text.count("1 First champion") == 1


def test_what_waits_for_a_person_comes_first(tmp_path: Path) -> None:
    nights = [a_night(n, Verdict.AWAITING_APPROVAL) for n in (1, 2, 3)]
    context = remembered(tmp_path, *nights)
    for night in nights:
        request_approval(context, made_up_decision(night.decision or ""))
    answer = ApprovalAnswer(decision="d3" * 6, answer="reject", who="Ann", why="stain", at=NOON)
    context.records.save(answer, answer.decision)
    text = text_of(build_site(context).read_text())
    assert text.index("Waiting for you: 2") < text.index("Decisions, newest first")
    assert f"decision {'d1' * 6}" in text
    assert f"decision {'d3' * 6}" not in text
    forms = {"d1": "http://127.0.0.1:4200/deployments/deployment/x/run", "d2": "javascript:alert(1)"}
    for name, form in forms.items():
        stored = context.records.load(ApprovalRequest, name * 6)
        context.records.save(stored.model_copy(update={"form_url": form}), stored.decision)
    page = build_site(context).read_text()
    assert f'<a href="{forms["d1"]}">' in page
    assert "javascript:" not in page
    assert "Rejected by Ann, 2026-01-02 12:00 UTC: stain" in text


def test_later_changes_are_shown_with_the_decision(tmp_path: Path) -> None:
    context = remembered(tmp_path, a_night(1, Verdict.AWAITING_APPROVAL))
    entry = Promotion(
        number=1, action="approved", who="Dr. <b>Ada", decision="d1" * 6, version_before=None, version_after="1",
        why="seen & agreed", at=NOON,
    )  # fmt: skip
    context.store.put(history_key(1), entry.model_dump_json().encode())
    text = text_of(build_site(context).read_text())
    assert "Approved by Dr. <b>Ada, 2026-01-02 12:00 UTC: seen & agreed" in text


def test_of_two_nights_with_one_decision_the_last_counts(tmp_path: Path) -> None:
    again = a_night(1, sentence="again", id="later", started_at=NOON + timedelta(days=5))
    assert [e.night.sentence for e in entries(remembered(tmp_path, a_night(1), again))] == ["again"]


def test_decisions_are_grouped_by_month_with_how_they_ended(tmp_path: Path) -> None:
    nights = [a_night(n, Verdict.PROMOTED if n == 28 else Verdict.KEPT, champion_before="1") for n in (27, 28, 30, 60)]
    text = text_of(build_site(remembered(tmp_path, *nights)).read_text())
    assert "March 2026 1 decision: 1 kept" in text
    assert "February 2026 1 decision: 1 kept" in text
    assert "January 2026 2 decisions: 1 promoted, 1 kept" in text
    assert text.index("March 2026") < text.index("February 2026") < text.index("January 2026")


@pytest.mark.parametrize(("values", "labels"), [((0.95, 0.97), ["95.0%", "97.0%"]), ((0.95, 0.9505), ["95.0%"])])
def test_the_chart_names_both_ends_of_its_axis_unless_they_would_cover_each_other(
    tmp_path: Path, values: tuple[float, float], labels: list[str]
) -> None:
    page = build_site(remembered(tmp_path, *(a_night(n, value=value) for n, value in enumerate(values, 1)))).read_text()
    assert re.findall(r'text-anchor="end">([\d.]+%)</text>', page) == labels
    top = min(float(y) for y in re.findall(r'<circle class="\w+" cx="[\d.]+" cy="([\d.]+)"', page))
    assert f'class="axis" d="M48 {top}V' in page


def test_a_damaged_record_hides_no_other(tmp_path: Path) -> None:
    context = remembered(tmp_path, a_night(1))
    assert isinstance(context.store, MemoryStore)
    context.store.put(record_key(Night.kind, "broken"), b"{}")
    assert len(entries(context)) == 1


def test_an_empty_store_has_an_index_that_says_what_to_do(tmp_path: Path) -> None:
    page = build_site(context_over(CountingStore(), tmp_path)).read_text()
    assert "No night has come to a decision yet." in page
    assert "retrain run" in page
    assert "<script>" not in page


def test_the_policy_names_the_one_script_and_hostile_text_is_text(tmp_path: Path) -> None:
    hostile = HOSTILE.rstrip("\ud800")
    night = a_night(1, sentence=hostile * 50_000, challenger_model=hostile)
    page = build_site(remembered(tmp_path, night)).read_text()
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert "<img" not in page
    assert len(page) < 40_000


def test_the_same_records_are_the_same_index(tmp_path: Path) -> None:
    context = remembered(tmp_path, a_night(1), a_night(2))
    assert render_index(entries(context)) == render_index(entries(context))
