"""The verdict outside the report: on Prefect's own pages, and on MLflow's.

On Prefect's it is a markdown and a link artifact under fixed keys; each night adds a version.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial

from prefect.artifacts import create_link_artifact, create_markdown_artifact

from infra.registry.registry import Registry
from infra.registry.trainings import Tried
from infra.report_server import page_address
from infra.store.keys import report_key
from tasks.champion.approval import open_request
from tasks.context import Context
from tasks.nights import undamaged
from tasks.reporting.format import shorten
from tasks.reporting.words.headline import SYNTHETIC, field_sentence, night_name
from tasks.stage import stage
from validation.errors import RetrainError
from validation.records import Candidate, Decision, Night
from validation.redaction import mask

log = logging.getLogger(__name__)

KEY, LINK_KEY = "promotion-report", "promotion-report-page"
# Markdown's own characters, escaped: text from outside must stay text.
_ESCAPED = str.maketrans({character: f"\\{character}" for character in "\\`*_{}[]()<>#+!|~&"})


def publish_artifacts(context: Context, night: Night) -> None:
    """Show a night's verdict on Prefect's pages. A failure is logged and costs the night nothing."""
    try:
        links = night_links(context, night)
        create_markdown_artifact(markdown(night, links), key=KEY, description=f"Verdict: {night.verdict.value}")
        if night.decision is not None:
            create_link_artifact(links["page"], link_text=f"Report {night.decision}", key=LINK_KEY)
    except Exception as error:  # Prefect's server may be gone, or refuse: the report is in the store all the same
        log.warning("the verdict is not on Prefect's page: %s: %s", type(error).__name__, shorten(str(error), 200))


def night_links(context: Context, night: Night) -> dict[str, str]:
    """Return the address of a night's report (``page``), and of the form where it waits for an answer; empty for none.

    Where the site of reports is served nowhere, a report's address is that in the store.
    """
    if night.decision is None:
        return {"page": "", "form": ""}
    key = report_key(night.decision)
    page = page_address(context.settings.site, key) or f"{mask(context.store.uri).rstrip('/')}/{key}"
    request = undamaged(partial(open_request, context, night.decision))
    return {"page": page, "form": (request.form_url or "") if request is not None else ""}


def note_in_registry(context: Context, night: Night, registry: Registry, tried: Tried | None = None) -> None:
    """Show a night's verdict and report on MLflow's pages. A failure is logged and costs the night nothing."""
    if night.decision is None:
        return
    try:
        registry.note_night(night, context.store.get(report_key(night.decision)))
    except RetrainError as error:
        log.warning("the verdict is not on MLflow's page: %s", error.message)
    note_trainings(context, night, registry, tried or Tried())


def note_trainings(context: Context, night: Night, registry: Registry, tried: Tried) -> None:
    """Show what a night has trained, or could not, on MLflow's pages. A failure is logged and costs the night nothing.

    A night without a decision has no candidates.
    """
    try:
        trained = context.records.load(Decision, night.decision).candidates if night.decision else ()
        if trained or tried.failures:
            registry.note_trainings(night, [context.records.load(Candidate, id_) for id_ in trained], tried)
    except Exception as error:  # nothing rests on these runs
        log.warning("tonight's trainings are not on MLflow's page: %s: %s", type(error).__name__, error)


def markdown(night: Night, links: Mapping[str, str] | None = None) -> str:
    """Return a night's verdict and its ``links`` as Markdown; what comes from outside is plain text in it."""
    lines = [f"## {night_name(night).capitalize()}", _text(night.sentence, 600), ""]
    if night.synthetic:
        lines += [f"**Synthetic cells. {SYNTHETIC}**", ""]
    if night.field is not None:
        lines += [_text(field_sentence(night.field), 300), ""]
    known = {name: value for name, value in night.metrics.items() if value is not None}
    if known:
        lines += [f"Challenger ({_text(night.challenger_model or 'unknown')}) on the judging patients:", ""]
        lines += ["| metric | value | interval |", "|---|---|---|"]
        lines += [
            f"| {_text(name.replace('_', ' '))} | {m.value:.4f} | {m.low:.4f} to {m.high:.4f} ({m.level:.0%}) |"
            for name, m in known.items()
        ]
        lines.append("")
    lines.append(f"Champion: {_text(night.champion_before or 'none')} → {_text(night.champion_after or 'none')}")
    if night.decision is not None:
        lines += ["", f"`retrain report {_text(night.decision)}`"]
        names = {"page": "The report", "form": "Approve or reject"}
        open_ones = {kind: link for kind, link in (links or {}).items() if link.startswith("http")}
        lines += [f"\n[{names[kind]}]({link})" for kind, link in open_ones.items()]
    return "\n".join(lines) + "\n"


def _text(value: str, length: int = 80) -> str:
    return shorten(" ".join(value.split()), length).translate(_ESCAPED)


publish_task = stage(publish_artifacts)
