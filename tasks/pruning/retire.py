"""Retire: the report of an old night gives way to a page that says so; its decision and its records stay.

The record of it comes first, then the page, then, by pruning, what only the report needed.
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
    """Raise for a report that cannot be built again.

    Raises:
        ObjectMissing: when it was retired.
    """
    if (retired := find_retired(context, decision)) is not None:
        raise ObjectMissing(
            f"the report on decision {decision} was retired on {retired.at:%Y-%m-%d}: {retired.why}",
            f"its records are in {context.store.uri}: {OURS}decisions/{decision}.json and what that names",
        )


def retirements(context: Context, references: References, registry: Registry) -> Iterator[Removal]:
    """Yield the reports that the policy lets go, and those that a killed process has not let go of altogether."""
    prefix = f"{OURS}{Exhibits.kind}/"
    sizes = {info.key: info.size for info in context.store.list(prefix)}
    for decision in references.decisions:
        size = sizes.get(report_key(decision.id), 0)
        local = context.workspace.reports / f"{decision.id}.html"
        is_here = local.is_file() and local.stat().st_size > LARGEST_STUB
        if decision.id in references.retired:
            if size > LARGEST_STUB or is_here:
                yield Removal(REPORTS, decision.id, size, "retired before, and killed on the way",
                              partial(retire, context, registry, decision))  # fmt: skip
        elif references.may_retire(decision):
            rules = context.settings.prune
            why = f"older than {rules.reports_days:g} days, and {rules.reports_nights} are newer"
            yield Removal(REPORTS, decision.id, size, why, partial(retire, context, registry, decision, why))


def retire(context: Context, registry: Registry, decision: Decision, why: str = "") -> None:
    """Put a page in place of a report, here and in the store; do it again where it was killed on the way."""
    # Before the record: nothing is lost by it, and nobody would come back to it afterwards.
    registry.delete_report_page(decision.id)
    retired = find_retired(context, decision.id)
    if retired is None:
        retired = Retired(decision=decision.id, why=why, at=datetime.now(UTC))
        context.records.save(retired, decision.id)
    page = _page(decision, retired).encode()
    context.store.put(report_key(decision.id), page)
    path = context.workspace.reports / f"{decision.id}.html"
    if path.exists():
        write_atomic(path, page)


def _page(decision: Decision, retired: Retired) -> str:
    said = html.escape(decision.sentence[:1_000])
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Report retired: {decision.id}</title></head>
<body><h1>{html.escape(decision.verdict.value.capitalize())}</h1>
<p>{said}</p>
<p>Decided {decision.decided_at:%Y-%m-%d %H:%M} UTC, decision <code>{decision.id}</code>. The report was retired on
{retired.at:%Y-%m-%d} ({html.escape(retired.why)}); the decision and its records are kept.</p>
<p><a href="index.html">All decisions</a></p></body></html>
"""
