"""The models of a night side by side on the holdout: what was recorded of each, and what its predictions tell."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tasks.reporting.figures.svg import TITLES, Role
from validation.records import NEGATIVE, POSITIVE, Candidate, Interval, Metrics
from validation.statistics.metrics import Scored
from validation.statistics.report_metrics import calibration_curve, classification_text, extra_metrics

if TYPE_CHECKING:
    from tasks.reporting.inputs import ReportInputs
    from validation.statistics.report_metrics import CalibrationBin


@dataclass(frozen=True)
class Model:
    """One model on the holdout. ``scored`` is None where its predictions were not kept."""

    role: Role
    note: str
    metrics: Metrics
    scored: Scored | None
    candidate: Candidate | None
    milliseconds: float | None
    differences: dict[str, Interval] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What a table calls it."""
        return TITLES[self.role]

    @cached_property
    def extra(self) -> dict[str, Interval | None]:
        """Metrics beyond those of the gate."""
        return extra_metrics(self.scored) if self.scored is not None else {}

    @cached_property
    def calibration(self) -> list[CalibrationBin]:
        """Bins of the calibration curve."""
        return calibration_curve(self.scored) if self.scored is not None else []

    @property
    def classification(self) -> str | None:
        """The classification report as scikit-learn prints it."""
        if self.scored is None or not len(self.scored.labels):
            return None
        called = self.scored.probabilities >= self.scored.threshold
        return classification_text(self.scored.labels, called, (NEGATIVE, POSITIVE))


def models_on_holdout(r: ReportInputs) -> list[Model]:
    """Return challenger, champion and the other CNN, those that have figures on the holdout."""
    e = r.evaluation
    if e is None:
        return []
    other = next((c for c in r.candidates if c.id == e.other), None)
    version = f"version {e.champion.version}, {e.champion.model}" if e.champion else ""
    sides: list[tuple[Role, str, Metrics | None, Candidate | None]] = [
        ("challenger", r.night.challenger_model or "", e.challenger_metrics, r.challenger),
        ("champion", version, e.champion_metrics, r.champion_candidate),
        ("other", other.spec.model if other else "", e.other_metrics, other),
    ]
    return [
        Model(role, note, metrics, _scored(r.predictions, role, metrics), candidate, e.milliseconds.get(role))
        for role, note, metrics, candidate in sides
        if metrics is not None
    ]


def _scored(predictions: pd.DataFrame | None, role: Role, metrics: Metrics) -> Scored | None:
    if predictions is None or role not in predictions:
        return None
    probabilities = predictions[role].to_numpy(dtype=np.float64)
    known = np.isfinite(probabilities)
    if not known.any():
        return None
    codes, _ = pd.factorize(predictions["patient"].to_numpy(dtype=object)[known], sort=True)
    labels = (predictions["label"] == 1).to_numpy(dtype=bool)[known]
    return Scored(labels, probabilities[known], codes.astype(np.int64), metrics.threshold)
