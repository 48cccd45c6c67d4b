"""The promotion report: from a night's records to one self-contained HTML page. Pure: no file is read but the template.

The words that carry the verdict are in ``report_words``, how text and numbers are printed in ``report_format``, the
drawings in ``report_plots``; the layout is ``report.html.j2``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tasks import report_format as form
from tasks import report_plots as plots
from tasks.report_format import NO_CELLS, count, level
from tasks.report_words import changes, outlook, why
from validation.records import Candidate, Decision, Evaluation, Metrics, Night, Snapshot, Split, ValidationResult

__all__ = ["ReportInputs", "render_report", "worst_patients"]

TEXT_LENGTH = 2_000  # of any text: no message from outside can make the page megabytes long
WORST_PATIENTS = 15


@dataclass(frozen=True)
class ReportInputs:
    """All that a report is made from.

    ``split`` is None when the data was invalid, ``evaluation`` and ``predictions`` when the holdout was not looked at.
    ``predictions`` has the columns key, sha256, patient, label (1 = Parasitized), challenger and champion
    (probabilities; NaN where there is no champion). ``commands`` and ``settings`` are printed as given: label -> text.
    """

    night: Night
    decision: Decision
    snapshot: Snapshot
    validation: ValidationResult
    split: Split | None
    candidates: tuple[Candidate, ...]
    evaluation: Evaluation | None
    predictions: pd.DataFrame | None
    champion_candidate: Candidate | None
    commands: dict[str, str]
    settings: dict[str, str]

    @property
    def challenger(self) -> Candidate | None:
        """Tonight's challenger, if a training brought one."""
        return next((c for c in self.candidates if c.id == self.decision.challenger), None)

    @property
    def has_champion(self) -> bool:
        """Whether there was a champion before tonight; a decision without a contest leaves it to the night to say."""
        return self.decision.champion_before is not None or self.night.champion_before is not None

    @property
    def champion_name(self) -> str:
        """The champion before tonight, as a sentence names it."""
        champion = self.decision.champion_before
        if champion is not None:
            return f"the champion (version {champion.version}, {champion.model})"
        return f"the champion (version {self.night.champion_before})" if self.has_champion else "no champion"


def render_report(inputs: ReportInputs) -> str:
    """One self-contained HTML page; the same inputs give the same bytes."""
    page = _environment().get_template("report.html.j2")
    return page.render(
        r=inputs,
        d=inputs.decision,
        e=inputs.evaluation,
        difference_level=_difference_level(inputs.evaluation),
        why=" ".join(why(inputs)),
        outlook=outlook(inputs),
        changes=changes(inputs),
        headline=_headline(inputs),
        figures=_figures(inputs),
        patients=worst_patients(inputs),
        shown_patients=WORST_PATIENTS,
        gate_strips=[Markup(plots.interval_strip(g.value, g.low, g.high, g.bound)) for g in inputs.decision.gates],  # noqa: S704
        NO_CELLS=NO_CELLS,
    ) + "\n"  # fmt: skip


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: form.shorten(value, TEXT_LENGTH) if type(value) is str else value,
    )
    environment.filters.update(
        short=form.shorten, share=form.share, number=form.number, signed=form.signed, when=form.when,
        measured=form.measured, bytes=form.file_size, spread=form.spread, duration=form.duration,
    )  # fmt: skip
    return environment


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
    return {"where": where, "challenger": ours, "champion": theirs, "level": level(shown[0]) if shown else ""}


def _difference_level(e: Evaluation | None) -> str:
    """The level of the paired differences, which is tonight's and not that of the other intervals."""
    return next((level(interval) for interval in e.differences.values()), "") if e else ""


def _scores(r: ReportInputs) -> list[plots.Scores]:
    if r.evaluation is None or r.predictions is None:
        return []
    ours, theirs = r.evaluation.challenger_metrics, r.evaluation.champion_metrics
    found: list[plots.Scores] = []
    sides: list[tuple[plots.Role, Metrics | None]] = [("challenger", ours), ("champion", theirs)]
    for role, metrics in sides:
        probabilities = r.predictions[role].to_numpy(dtype=np.float64)
        known = np.isfinite(probabilities)
        if metrics is not None and known.any():
            labels = r.predictions["label"].to_numpy(dtype=np.int64)[known]
            found.append(plots.Scores(role, labels, probabilities[known], metrics.threshold))
    return found


def _figures(r: ReportInputs) -> dict[str, Any]:
    scores = _scores(r)
    learning = [plots.learning_plot(c, f"learning-{i}") for i, c in enumerate(r.candidates)]

    def safe(svg: str | None) -> Markup | None:
        return Markup(svg) if svg else None  # noqa: S704 - drawn by report_plots from numbers, labels escaped there

    return {
        "roc": safe(plots.roc_plot(scores)),
        "precision_recall": safe(plots.precision_recall_plot(scores)),
        "scores": [(s.role, safe(plots.score_plot(s))) for s in scores],
        "learning": [safe(svg) for svg in learning],
    }


def worst_patients(r: ReportInputs) -> list[dict[str, Any]]:
    """Holdout patients with the lowest accuracy first; ties by number of mistakes, then by name."""
    if r.evaluation is None or r.predictions is None:
        return []
    ours, theirs = r.evaluation.challenger_metrics, r.evaluation.champion_metrics
    rows: dict[str, dict[str, Any]] = {}
    columns = (r.predictions[name].tolist() for name in ("patient", "label", "challenger", "champion"))
    for patient, label, challenger, champion in zip(*columns, strict=True):
        row = rows.setdefault(
            str(patient), dict.fromkeys(("cells", "infected", "missed", "false_alarms", "champion"), 0)
        )
        infected, called = label == 1, challenger >= ours.threshold
        row["cells"] += 1
        row["infected"] += infected
        row["missed"] += infected and not called
        row["false_alarms"] += called and not infected
        row["champion"] += theirs is not None and (champion >= theirs.threshold) != infected
    for patient, row in rows.items():
        row["patient"], row["mistakes"] = patient, row["missed"] + row["false_alarms"]
        row["accuracy"] = 1 - row["mistakes"] / row["cells"]
    return sorted(rows.values(), key=lambda row: (row["accuracy"], -row["mistakes"], row["patient"]))
