"""The index of all decisions: one static page beside the reports, newest first, rebuilt whenever a report is.

It reads the nights' records and the champion's history, nothing else, and works without its script.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from infra.local.files import write_atomic
from infra.store.keys import report_index_key
from tasks.champion.history import history
from tasks.context import Context
from tasks.nights import nights
from tasks.reporting.figures.svg import sparkline
from tasks.reporting.page import page_environment
from validation.errors import RetrainError
from validation.records import Interval, Night, Promotion, Verdict

log = logging.getLogger(__name__)

HEADLINES = (
    ("balanced_accuracy", "Balanced accuracy"),
    ("sensitivity", "Sensitivity"),
    ("specificity", "Specificity"),
    ("auc", "AUC"),
)
# Shows what is filtered, and nothing else: without it all rows are there. Its digest is in the page's policy.
_SCRIPT = """
const form = document.getElementById('filters'), rows = [...document.querySelectorAll('tbody tr')];
const told = document.getElementById('shown');
function show() {
  const verdict = form.verdict.value, model = form.model.value, text = form.text.value.trim().toLowerCase();
  let count = 0;
  for (const row of rows) {
    const fits = (!verdict || row.dataset.verdict === verdict) && (!model || row.dataset.model === model)
      && (!text || row.textContent.toLowerCase().includes(text));
    row.hidden = !fits;
    count += fits;
  }
  told.textContent = count + ' of ' + rows.length + ' decisions';
}
form.hidden = false;
form.addEventListener('input', show);
form.addEventListener('submit', (event) => event.preventDefault());
show();
"""


@dataclass(frozen=True)
class IndexRow:
    """One decision of the index: its night, and what people did about it afterwards."""

    night: Night
    afterwards: tuple[Promotion, ...]

    @property
    def numbers(self) -> list[Interval | None]:
        """The headline numbers of the challenger on the holdout."""
        return [self.night.metrics.get(name) for name, _ in HEADLINES]


def build_site(context: Context) -> Path:
    """Write the index of all decisions into the store and beside the reports on this machine; return its path."""
    page = render_index(entries(context)).encode()
    context.store.put(report_index_key(), page)
    path = context.workspace.reports / "index.html"
    write_atomic(path, page)
    return path


def refresh_index(context: Context) -> None:
    """Rebuild the index after something that it shows; what was done stands, whether or not the index can show it."""
    try:
        build_site(context)
    except RetrainError as error:
        log.warning("the index of all decisions was not rebuilt: %s", error)


def entries(context: Context) -> list[IndexRow]:
    """Return all decisions, newest first; of nights that came to the same one, the last."""
    changes = history(context)
    latest: dict[str, Night] = {}
    for night in nights(context):
        if night.decision:
            latest.setdefault(night.decision, night)
    return [
        IndexRow(night, tuple(c for c in changes if c.decision == night.decision and c.action != "promoted"))
        for night in latest.values()
    ]


def render_index(found: list[IndexRow]) -> str:
    """Return the index page; the same entries give the same bytes."""
    oldest_first = [entry.night for entry in reversed(found)]
    lines = {
        name: sparkline([(interval.value if (interval := night.metrics.get(name)) else None) for night in oldest_first],
                        [night.verdict is Verdict.PROMOTED for night in oldest_first])
        for name, _ in HEADLINES
    }  # fmt: skip
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    return page_environment().get_template("index.html.j2").render(
        entries=found,
        headlines=HEADLINES,
        sparklines={name: Markup(svg) for name, svg in lines.items()},  # noqa: S704 - drawn from numbers
        latest={name: next((v for e in found if (v := e.night.metrics.get(name))), None) for name, _ in HEADLINES},
        verdicts=sorted({entry.night.verdict.value for entry in found}),
        models=sorted({entry.night.challenger_model for entry in found if entry.night.challenger_model}),
        champion=next((night.champion_after for night in reversed(oldest_first) if night.champion_after), None),
        script=Markup(_SCRIPT),  # noqa: S704 - our own
        digest=Markup(digest),  # noqa: S704 - base64
    ) + "\n"  # fmt: skip
