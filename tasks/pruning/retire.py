"""Retire: the report of an old night is replaced by a page that says so; its decision and its records stay.

The record of it is written first, then the page; pruning then removes what only the report needed.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial

from infra.local.files import write_atomic
from infra.registry.registry import Registry
from infra.store.keys import OURS, report_key
from tasks.context import Context
from tasks.pruning.references import References
from tasks.pruning.removal import REPORTS, Removal
from validation.errors import ObjectMissing
from validation.records import Decision, Exhibits, Retired

# The page of a retired report is smaller, every report larger.
LARGEST_STUB = 4_096


def find_retired(context: Context, decision: str) -> Retired | None:
    """Return when and why the report on a decision was retired, if it was."""
    return context.records.find(Retired, decision)


def refuse_retired(context: Context, decision: str) -> None:
    """Raise ObjectMissing for a report that was retired: it cannot be built again."""
    if (retired := find_retired(context, decision)) is not None:
        raise ObjectMissing(
            f"the report on decision {decision} was retired on {retired.at:%Y-%m-%d}: {retired.why}",
            f"its records are in {context.store.uri}: {OURS}decisions/{decision}.json and the records it names",
        )


def retirements(context: Context, references: References, registry: Registry) -> Iterator[Removal]:
    """Yield the reports that the policy releases, and those whose retirement was killed before its end."""
    sizes = {info.key: info.size for info in context.store.list(f"{OURS}{Exhibits.kind}/")}
    rules = context.settings.prune
    why = f"older than {rules.reports_days:g} days, and {rules.reports_nights} are newer"
    for decision in references.decisions:
        size = sizes.get(report_key(decision.id), 0)
        remove = partial(retire, context, registry, decision, why)
        if decision.id in references.retired:
            local = context.workspace.reports / f"{decision.id}.html"
            if size > LARGEST_STUB or (local.is_file() and local.stat().st_size > LARGEST_STUB):
                yield Removal(REPORTS, decision.id, size, "retired before, but killed before its end", remove)
        elif references.may_retire(decision):
            yield Removal(REPORTS, decision.id, size, why, remove)


def retire(context: Context, registry: Registry, decision: Decision, why: str) -> None:
    """Put a page in place of a report, here and in the store; a retirement that was killed keeps its reason."""
    # Before the record: once that is stored, a retirement that was killed would not come back to this.
    registry.delete_report_page(decision.id)
    retired = find_retired(context, decision.id)
    if retired is None:
        retired = context.records.save_once(Retired(decision=decision.id, why=why, at=datetime.now(UTC)), decision.id)
    page = _page(decision, retired).encode()
    context.store.put(report_key(decision.id), page)
    path = context.workspace.reports / f"{decision.id}.html"
    if path.exists():
        write_atomic(path, page)


def _page(decision: Decision, retired: Retired) -> str:
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Report retired: {decision.id}</title></head>
<body><h1>{html.escape(decision.verdict.value.capitalize())}</h1>
<p>{html.escape(decision.sentence[:1_000])}</p>
<p>Decided {decision.decided_at:%Y-%m-%d %H:%M} UTC, decision <code>{decision.id}</code>. The report was retired on
{retired.at:%Y-%m-%d} ({html.escape(retired.why)}); the decision and its records are kept.</p>
<p><a href="index.html">All decisions</a></p></body></html>
"""
