"""The promotion report: from a night's records to one self-contained HTML page. Pure: only the templates are read.

Sentences come from ``words/``, drawings from ``figures/``, cell images from ``pictures/``, the models side by side from
``models``, printed numbers from ``format``, the layout from ``templates/page.html.j2``.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from rich.filesize import decimal

from tasks.reporting import format as form
from tasks.reporting.effects import calls_by_prevalence, effects, limits, model_in_use
from tasks.reporting.figures import curves
from tasks.reporting.figures.patients import called_plot, called_words, difference_plot
from tasks.reporting.figures.svg import TITLES, interval_strip
from tasks.reporting.figures.trends import champion_plot, learning_plot
from tasks.reporting.flow import intended_use, stated, steps, uncounted_sites
from tasks.reporting.inputs import ReportInputs, past_night
from tasks.reporting.models import Model, judged_models
from tasks.reporting.pictures.gallery import galleries
from tasks.reporting.subgroups import stain_groups, tallies_by_patient, worst_patients
from tasks.reporting.words.conditions import condition
from tasks.reporting.words.confidence import confidence
from tasks.reporting.words.headline import SYNTHETIC, approval_state, field_sentence, headline, night_name, verdict_name
from tasks.reporting.words.next_steps import next_steps
from tasks.reporting.words.reasons import why

TEXT_LENGTH = 2_000  # of any text: no message from outside can make the page megabytes long
WORST_PATIENTS = 5


def render_report(inputs: ReportInputs) -> str:
    """Return one self-contained HTML page; the same inputs give the same bytes."""
    models = judged_models(inputs)
    shown, pictures = galleries(inputs)
    decision, evaluation = inputs.decision, inputs.evaluation
    # The level of the paired differences is tonight's and not that of the other intervals.
    differences = evaluation.differences.values() if evaluation else ()
    return page_environment().get_template("page.html.j2").render(
        r=inputs,
        d=decision,
        decision=re.sub(r"[^\w-]", "", decision.id)[:64],
        e=evaluation,
        x=inputs.exhibits,
        difference_level=next(map(form.level, differences), ""),
        lead=headline(inputs),
        why=why(inputs),
        confidence=confidence(inputs),
        verdict=verdict_name(decision.verdict, inputs.answer, has_champion=inputs.has_champion),
        approval=approval_state(inputs),
        next_steps=next_steps(inputs),
        evidence=_evidence(inputs, models),
        flow=steps(inputs),
        intended_use=intended_use(inputs.night.settings),
        stated=stated(inputs.night.settings),
        uncounted_sites=uncounted_sites(inputs.night.settings),
        models=models,
        figures=_figures(inputs, models),
        patients=worst_patients(inputs),
        shown_patients=WORST_PATIENTS,
        stains=stain_groups(inputs),
        galleries=shown,
        pictures=pictures,
        gates=[(g, condition(g), _safe(interval_strip(g.value, g.low, g.high, g.bound))) for g in decision.gates],
    ) + "\n"  # fmt: skip


@cache
def page_environment() -> Environment:
    """Return the environment of the templates: all text escaped, and text from outside made visible and short."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates"), encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: form.shorten(value, TEXT_LENGTH) if type(value) is str else value,
    )
    environment.filters.update(
        short=form.shorten, capital=form.capital, share=form.share, number=form.number, signed=form.signed,
        when=form.when, measured=form.measured, bytes=decimal, spread=form.spread, duration=form.duration,
        fixed=form.fixed, cards=form.cards,
    )  # fmt: skip
    environment.globals.update(METRICS=form.METRICS, HEADLINES=form.HEADLINES, SYNTHETIC=SYNTHETIC)
    environment.globals.update(field_sentence=field_sentence, night_name=night_name)
    return environment


def _safe(svg: str | None) -> Markup | None:
    return Markup(svg) if svg else None  # noqa: S704 - drawn by figures/svg from numbers, labels escaped there


def _evidence(r: ReportInputs, models: list[Model]) -> dict[str, Any]:
    """Return what the first screen shows beside the verdict: figures in cells, and a dot for each patient."""
    patients, used = tallies_by_patient(r), model_in_use(r, models)
    model, name = used if used is not None else (None, "")
    metrics = model.metrics if model is not None else None
    called = "champion_called" if model is not None and model.role == "champion" else "called"
    compared = patients if r.evaluation is not None and r.evaluation.champion_metrics is not None else []
    return {
        "effects": effects(r, models),
        "in_use": name,
        "calls": calls_by_prevalence(metrics) if metrics is not None else [],
        "limits": limits(metrics),
        "differences": _safe(difference_plot(compared)),
        "called": _safe(called_plot(patients, called)),
        "called_words": called_words(patients, called) if patients else "",
    }


def _figures(r: ReportInputs, models: list[Model]) -> dict[str, Any]:
    scores = {model.role: model.scored for model in models if model.scored is not None}
    past = list(r.exhibits.past) if r.exhibits is not None else []
    tonight = past_night(r.decision, r.evaluation)
    return {
        "roc": _safe(curves.roc_plot(scores)),
        "precision_recall": _safe(curves.precision_recall_plot(scores)),
        "calibration": _safe(curves.calibration_plot({model.role: model.calibration for model in models})),
        "scores": [(TITLES[role], _safe(curves.score_plot(role, scored))) for role, scored in scores.items()],
        "learning": [_safe(learning_plot(c, f"learning-{i}")) for i, c in enumerate(r.candidates)],
        "history": _safe(champion_plot([*past, tonight] if tonight else past)),
    }
