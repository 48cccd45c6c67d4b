"""The promotion report: from a night's records to one self-contained HTML page. Pure: no file is read but the template.

Sentences come from ``words/``, drawings from ``figures/``, cell images from ``pictures/``, the models side by side from
``models``, printed numbers from ``format``, the layout from ``templates/page.html.j2``.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tasks.reporting import format as form
from tasks.reporting.figures import curves as plots
from tasks.reporting.figures.svg import TITLES, comparison_strip, interval_strip
from tasks.reporting.figures.trends import champion_plot, learning_plot
from tasks.reporting.format import NO_CELLS, count, level
from tasks.reporting.inputs import ReportInputs
from tasks.reporting.models import Model, models_on_holdout
from tasks.reporting.pictures import gallery
from tasks.reporting.subgroups import stain_groups, worst_patients
from tasks.reporting.words.confidence import confidence
from tasks.reporting.words.headline import summary_sentence
from tasks.reporting.words.next_steps import next_steps
from tasks.reporting.words.reasons import changes, outlook, why
from validation.records import (
    Evaluation,
    Interval,
    Metrics,
    PastNight,
    Verdict,
)

__all__ = ["ReportInputs", "page_environment", "render_report", "worst_patients"]
TEXT_LENGTH = 2_000  # of any text: no message from outside can make the page megabytes long
WORST_PATIENTS = 15
HEADLINES = ("balanced_accuracy", "sensitivity", "specificity", "auc")


def render_report(inputs: ReportInputs) -> str:
    """One self-contained HTML page; the same inputs give the same bytes."""
    models = models_on_holdout(inputs)
    shown, pictures = gallery.galleries(inputs)
    patients = worst_patients(inputs)
    return page_environment().get_template("page.html.j2").render(
        r=inputs,
        d=inputs.decision,
        e=inputs.evaluation,
        x=inputs.exhibits,
        difference_level=_difference_level(inputs.evaluation),
        summary_sentence=summary_sentence(inputs),
        why=" ".join(why(inputs)),
        sure=" ".join(confidence(inputs)),
        outlook=outlook(inputs),
        changes=changes(inputs),
        next_steps=next_steps(inputs),
        headline=_headline(inputs),
        models=models,
        figures=_figures(inputs, models),
        patients=patients,
        shown_patients=WORST_PATIENTS,
        stains=stain_groups(inputs),
        galleries=shown,
        pictures=pictures,
        gate_strips=[_safe(interval_strip(g.value, g.low, g.high, g.bound)) for g in inputs.decision.gates],
        NO_CELLS=NO_CELLS,
    ) + "\n"  # fmt: skip


@cache
def page_environment() -> Environment:
    """Return the templates' surroundings: everything escaped, everything from outside made visible and short."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates"), encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: form.shorten(value, TEXT_LENGTH) if type(value) is str else value,
    )
    environment.filters.update(
        short=form.shorten, share=form.share, number=form.number, signed=form.signed, when=form.when,
        measured=form.measured, bytes=form.file_size, spread=form.spread, duration=form.duration,
        told=gallery.told, amount=gallery.amount, fixed=form.fixed,
    )  # fmt: skip
    return environment


def _safe(svg: str | None) -> Markup | None:
    return Markup(svg) if svg else None  # noqa: S704 - drawn by figures/svg from numbers, labels escaped there


def _headline(r: ReportInputs) -> dict[str, Any]:
    """The best evidence there is for the first screen, and what it was measured on."""
    ours: Metrics | None = None
    theirs: Metrics | None = None
    where = "There are no figures tonight"
    if r.evaluation is not None:
        ours, theirs = r.evaluation.challenger_metrics, r.evaluation.champion_metrics
        where = f"On {count(ours.cells, 'cell')} of {count(ours.patients, 'holdout patient')}"
    elif r.challenger is not None:
        ours, theirs = r.challenger.validation, r.decision.champion_on_validation
        where = "On the validation patients, which the model was chosen on: no proof. The holdout was not looked at"
    elif r.champion_candidate is not None:
        theirs = r.champion_candidate.validation
        where = "The champion on its validation patients, when it was trained"
    known = [m for m in (ours or theirs, theirs) if m is not None]
    shown = [v for m in known for v in (m.accuracy, m.balanced_accuracy, m.specificity, m.sensitivity) if v is not None]
    strips, start = _headline_strips(ours, theirs)
    return {
        "where": where,
        "challenger": ours,
        "champion": theirs,
        "level": level(shown[0]) if shown else "",
        "strips": strips,
        "start": start,
    }


def _headline_strips(ours: Metrics | None, theirs: Metrics | None) -> tuple[dict[str, Markup], float]:
    """Both models' intervals for every headline metric on one common scale, and where that begins."""

    def known(metrics: Metrics | None, name: str) -> Interval | None:
        found = form.measured(metrics, name) if metrics is not None else ""
        return None if isinstance(found, str) else found

    pairs = {name: (known(ours, name), known(theirs, name)) for name in HEADLINES}
    lows = [i.low for pair in pairs.values() for i in pair if i is not None]
    start = max(0.0, int(20 * min(lows)) / 20) if lows else 0.0
    if start >= 1:
        start = 0.95
    return {name: Markup(comparison_strip(*pair, start)) for name, pair in pairs.items()}, start  # noqa: S704


def _difference_level(e: Evaluation | None) -> str:
    """The level of the paired differences, which is tonight's and not that of the other intervals."""
    return next((level(interval) for interval in e.differences.values()), "") if e else ""


def _figures(r: ReportInputs, models: list[Model]) -> dict[str, Any]:
    scores = [
        plots.Scores(m.role, m.scored.labels.astype(int), m.scored.probabilities, m.scored.threshold)
        for m in models
        if m.scored is not None
    ]
    return {
        "roc": _safe(plots.roc_plot(scores)),
        "precision_recall": _safe(plots.precision_recall_plot(scores)),
        "calibration": _safe(plots.calibration_plot([(m.role, m.calibration) for m in models])),
        "scores": [(TITLES[s.role], _safe(plots.score_plot(s))) for s in scores],
        "learning": [_safe(learning_plot(c, f"learning-{i}")) for i, c in enumerate(r.candidates)],
        "history": _safe(champion_plot(_champion_nights(r))),
    }


def _champion_nights(r: ReportInputs) -> list[PastNight]:
    """The champion's past looks, and tonight's."""
    past = list(r.exhibits.past) if r.exhibits is not None else []
    e, promoted = r.evaluation, r.decision.verdict is Verdict.PROMOTED
    metrics = None if e is None else e.challenger_metrics if promoted else e.champion_metrics
    if metrics is None:
        return past
    tonight = PastNight(
        decision=r.decision.id,
        at=r.decision.decided_at,
        verdict=r.decision.verdict,
        version=r.night.champion_after,
        model=None,
        balanced_accuracy=metrics.balanced_accuracy,
        sensitivity=metrics.sensitivity,
        specificity=metrics.specificity,
    )
    return [*past, tonight]
