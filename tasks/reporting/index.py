"""The index of all decisions: one static page beside the reports, newest first, rebuilt whenever a report is.

It reads the nights' records, the champion's history and the approvals, nothing else, and works without its script.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

from markupsafe import Markup

from infra.local.files import write_atomic
from infra.store.keys import INDEX, PLAN, report_key
from tasks.champion.approval import open_requests
from tasks.champion.history import history
from tasks.context import Context
from tasks.nights import load_all, nights, undamaged
from tasks.reporting.figures.trends import decisions_plot
from tasks.reporting.format import count
from tasks.reporting.page import page_environment
from tasks.reporting.planned_changes import render_plan
from tasks.reporting.words.headline import answered, index_headline, night_name
from tasks.reporting.words.next_steps import form_of
from validation.errors import RetrainError
from validation.records import ApprovalAnswer, ApprovalRequest, Night, Promotion

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class IndexRow:
    """One decision of the index: its night, and what people did about it afterwards."""

    night: Night
    afterwards: tuple[Promotion | ApprovalAnswer, ...]


def build_site(context: Context) -> Path:
    """Write index and planned changes into the store and beside this machine's reports; return the index's path."""
    page = render_index(entries(context), undamaged(partial(open_requests, context)) or ()).encode()
    for name, content in {PLAN: render_plan(context.settings).encode(), INDEX: page}.items():
        context.store.put(report_key(name), content)
        path = context.workspace.reports / f"{name}.html"
        write_atomic(path, content)
    return path


def refresh_index(context: Context) -> None:
    """Rebuild the index after a change that it shows; a failure is logged and undoes nothing."""
    try:
        build_site(context)
    except RetrainError as error:
        log.warning("the index of all decisions was not rebuilt: %s", error)


def entries(context: Context) -> list[IndexRow]:
    """Return all decisions, newest first; of nights that came to the same one, the last."""
    # What cannot be read is said where the history is asked for.
    known = undamaged(partial(history, context)) or ()
    changes: defaultdict[str, list[Promotion | ApprovalAnswer]] = defaultdict(list)
    for change in known:
        if change.action != "promoted":
            changes[change.decision].append(change)
    for answer in load_all(context, ApprovalAnswer):
        if answer.answer == "reject":
            changes[answer.decision].append(answer)
    latest: dict[str, Night] = {}
    for night in nights(context):
        if night.decision:
            latest.setdefault(night.decision, night)
    return [IndexRow(night, tuple(changes[decision])) for decision, night in latest.items()]


def by_month(rows: list[IndexRow]) -> list[tuple[str, str, list[IndexRow]]]:
    """Return the rows of each month, newest first, with its name and how its nights ended."""
    months = []
    for month, group in groupby(rows, key=lambda row: f"{row.night.started_at:%B %Y}"):
        members = list(group)
        ended = Counter(night_name(row.night) for row in members).most_common()
        words = ", ".join(f"{amount} {name}" for name, amount in ended)
        months.append((month, f"{count(len(members), 'decision')}: {words}", members))
    return months


def render_index(rows: list[IndexRow], waiting: Sequence[ApprovalRequest] = ()) -> str:
    """Return the index page, with what waits for a person first; the same rows give the same bytes."""
    nights = [row.night for row in rows]
    environment = page_environment()
    script = environment.get_template("script.html.j2").render()
    champion = next((night.champion_after for night in nights if night.champion_after), None)
    return environment.get_template("index.html.j2").render(
        entries=rows,
        lead=index_headline(len(rows), champion),
        answered=answered,
        waiting=sorted(waiting, key=lambda request: request.expires_at),
        form_of=form_of,
        months=by_month(rows),
        chart=Markup(decisions_plot(nights[::-1])),  # noqa: S704 - numbers and dates
        verdicts=sorted({night_name(night) for night in nights}),
        field=next((night.field for night in nights if night.field and night.field.version == champion), None),
        models=sorted({night.challenger_model for night in nights if night.challenger_model}),
        script=Markup(script),  # noqa: S704 - our own
        digest=Markup(base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()),  # noqa: S704 - base64
    ) + "\n"  # fmt: skip
