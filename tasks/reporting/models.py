"""The models of a night side by side on the judging patients: their records, and what their predictions show."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from tasks.reporting.figures.svg import TITLES, Role
from tasks.reporting.inputs import ReportInputs
from validation.records import NEGATIVE, POSITIVE, Candidate, Interval, Metrics
from validation.statistics.metrics import Scored
from validation.statistics.report_metrics import (
    CalibrationBin,
    calibration_curve,
    classification_text,
    extra_metrics,
    sensitivity_at,
)


@dataclass(frozen=True)
class Model:
    """One judged model. ``scored`` and what follows from it are missing where its predictions were not kept."""

    role: Role
    note: str
    metrics: Metrics
    candidate: Candidate | None
    milliseconds: float | None
    scored: Scored | None

    @property
    def title(self) -> str:
        """The heading of its column in a table."""
        return TITLES[self.role]

    @cached_property
    def extra(self) -> dict[str, Interval | None]:
        """Metrics beyond those of the gate."""
        return extra_metrics(self.scored) if self.scored else {}

    @cached_property
    def calibration(self) -> list[CalibrationBin]:
        """Bins of the calibration curve."""
        return calibration_curve(self.scored) if self.scored else []

    def sensitivity_at(self, specificity: float) -> float | None:
        """Return the share of infected cells found at the lowest threshold with so high a specificity."""
        return sensitivity_at(self.scored, specificity) if self.scored else None

    @property
    def classification(self) -> str | None:
        """The classification report as scikit-learn prints it."""
        if self.scored is None:
            return None
        called = self.scored.probabilities >= self.scored.threshold
        return classification_text(self.scored.labels, called, (NEGATIVE, POSITIVE))


def judged_models(r: ReportInputs) -> list[Model]:
    """Return challenger, champion and the other CNN, those that were judged."""
    e = r.evaluation
    if e is None:
        return []
    other = next((c for c in r.candidates if c.id == e.other), None)
    version = f"version {e.champion.version}, {e.champion.model}" if e.champion else ""
    sides: list[tuple[Role, str, Metrics | None, Candidate | None]] = [
        ("challenger", r.night.challenger_model or "", e.challenger_metrics, r.challenger),
        ("champion", version, e.champion_metrics, r.champion_candidate),
        ("other", other.model if other else "", e.other_metrics, other),
    ]
    return [
        Model(role, note, metrics, candidate, e.milliseconds.get(role), _scored(r.predictions, role, metrics))
        for role, note, metrics, candidate in sides
        if metrics is not None
    ]


def _scored(predictions: pd.DataFrame | None, role: Role, metrics: Metrics) -> Scored | None:
    if predictions is None or role not in predictions:
        return None
    known = predictions[np.isfinite(predictions[role].to_numpy(dtype=np.float64))]
    if known.empty:
        return None
    codes, _ = pd.factorize(known["patient"].to_numpy(dtype=object), sort=True)
    labels = (known["label"] == 1).to_numpy(dtype=bool)
    return Scored(labels, known[role].to_numpy(dtype=np.float64), codes.astype(np.int64), metrics.threshold)
