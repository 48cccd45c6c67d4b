"""The drawings of a report on what models said about the holdout cells: ROC, precision-recall, calibration, scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.reporting.figures.svg import INK, LINE, ROLE_COLOURS, SOFT, STYLES, TITLES, Role, figure, render
from validation.records import NEGATIVE, POSITIVE
from validation.statistics.report_metrics import CalibrationBin

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """What one model said about the holdout cells: ``labels`` 0/1 and ``probabilities`` [n], and its threshold."""

    role: Role
    labels: NDArray[np.int64]
    probabilities: Floats
    threshold: float

    @property
    def called(self) -> NDArray[np.bool_]:
        """Cells that the model calls infected."""
        return self.probabilities >= self.threshold

    @property
    def both_classes(self) -> bool:
        """Whether a ROC or a precision-recall curve is defined at all."""
        return bool(self.labels.min(initial=1) == 0 and self.labels.max(initial=0) == 1)


def roc_plot(models: Sequence[Scores]) -> str | None:
    """Sensitivity against the false alarm rate, thresholds marked; None where a class has no cells."""
    from sklearn.metrics import roc_curve

    def curve(scores: Scores) -> tuple[Floats, Floats]:
        false_alarms, sensitivity, _ = roc_curve(scores.labels, scores.probabilities)
        return false_alarms, sensitivity

    def point(scores: Scores) -> tuple[float, float]:
        positive = scores.labels == 1
        return float(scores.called[~positive].mean()), float(scores.called[positive].mean())

    labels = ("False alarm rate (1 − specificity)", "Sensitivity")
    return _curves("roc", models, curve, point, labels, corner=(0.0, 0.25))


def precision_recall_plot(models: Sequence[Scores]) -> str | None:
    """Precision against sensitivity, thresholds marked; None where a class has no cells."""
    from sklearn.metrics import precision_recall_curve

    def curve(scores: Scores) -> tuple[Floats, Floats]:
        precision, recall, _ = precision_recall_curve(scores.labels, scores.probabilities, drop_intermediate=True)
        return recall, precision

    def point(scores: Scores) -> tuple[float, float]:
        hits = float((scores.called & (scores.labels == 1)).sum())
        called = float(scores.called.sum())
        return hits / float((scores.labels == 1).sum()), hits / called if called else 1.0

    labels = ("Sensitivity (recall)", "Precision")
    return _curves("pr", models, curve, point, labels, corner=(0.75, 1.0))


def _curves(
    name: str, models: Sequence[Scores], curve: Any, point: Any, labels: tuple[str, str], corner: tuple[float, float]
) -> str | None:
    """Curves of all models on the whole square, and once more the corner where good models live."""
    if not models or not all(scores.both_classes for scores in models):
        return None
    where = {scores.role: point(scores) for scores in models}

    def plot(axes: Any, *, named: bool) -> None:
        for scores in models:
            line, marker = STYLES[scores.role]
            x, y = where[scores.role]
            style = {"color": ROLE_COLOURS[scores.role], "linestyle": line}
            axes.plot(*curve(scores), **style)
            label = f"{TITLES[scores.role]}, threshold {scores.threshold:.3f}"
            axes.plot(
                [x], [y], marker=marker, markersize=8, markeredgecolor="#ffffff", clip_on=not named, zorder=5, **style
            )
            if named:
                axes.plot([], [], marker=marker, markersize=7, label=label, **style)

    def draw() -> Any:
        drawing, axes = figure(top=0.97 - 0.055 * len(models))
        plot(axes, named=True)
        axes.set(xlabel=labels[0], ylabel=labels[1], xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
        axes.grid(True)
        inset = axes.inset_axes((0.4 if corner[0] == 0 else 0.13, 0.12, 0.54, 0.54))
        plot(inset, named=False)
        inset.set(xlim=corner, ylim=(0.75, 1.003))
        inset.spines[:].set_visible(True)
        inset.set_xticks([0.0, 0.1, 0.2] if corner[0] == 0 else [0.8, 0.9, 1.0])
        inset.set_yticks([0.8, 0.9, 1.0])
        inset.grid(True)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.03, 1.0), borderaxespad=0.2)
        return drawing

    spots = "; ".join(f"{TITLES[role]} at {x:.3f}, {y:.3f}" for role, (x, y) in where.items())
    return render(draw, name, f"{labels[1]} against {labels[0]}. At its threshold: {spots}.")


def score_plot(scores: Scores) -> str | None:
    """Cells by score, a panel a class, what lies on the wrong side of the threshold filled dark."""
    if not len(scores.labels):
        return None
    edges = _edges(scores.threshold)
    panels = [
        (POSITIVE, scores.labels == 1, ~scores.called, "missed"),
        (NEGATIVE, scores.labels == 0, scores.called, "false alarms"),
    ]

    def draw() -> Any:
        drawing, axes = figure(2, top=0.93, hspace=0.28)
        for axis, (label, of_class, wrong, mistake) in zip(axes, panels, strict=True):
            _panel(axis, scores, edges, of_class, wrong)
            title = f"{TITLES[scores.role]} · {label}: {of_class.sum():,} cells, {(of_class & wrong).sum():,} {mistake}"
            axis.set_title(title, fontsize=11, loc="left")
        axes[1].set_xlabel(f"Probability of {POSITIVE}; dashed: threshold {scores.threshold:.3f}")
        drawing.supylabel("Cells (logarithmic)", fontsize=11, x=0.01)
        return drawing

    told = ", ".join(
        f"{int((of & wrong).sum())} {mistake} of {int(of.sum())} {label}" for label, of, wrong, mistake in panels
    )
    return render(draw, f"scores-{scores.role}", f"Histogram of scores by class, {TITLES[scores.role]}: {told}.")


def _edges(threshold: float) -> Floats:
    """Bins about 0.05 wide with an edge on the threshold, so that no bin holds right and wrong cells together."""
    if not 0 < threshold < 1:
        return np.linspace(0, 1, 21)
    below, above = max(1, round(threshold / 0.05)), max(1, round((1 - threshold) / 0.05))
    return np.concatenate([np.linspace(0, threshold, below + 1), np.linspace(threshold, 1, above + 1)[1:]])


def _panel(axis: Any, scores: Scores, edges: Floats, of_class: NDArray[np.bool_], wrong: NDArray[np.bool_]) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    for cells, colour in ((of_class & ~wrong, LINE), (of_class & wrong, INK)):
        counts, _ = np.histogram(scores.probabilities[cells], edges)
        kept = counts > 0  # a logarithm has no zero
        left, width = edges[:-1][kept], np.diff(edges)[kept]
        axis.bar(left, counts[kept] - 0.5, width, bottom=0.5, align="edge", color=colour, edgecolor=SOFT, linewidth=0.6)
    axis.set_yscale("log")
    axis.set(xlim=(0, 1), ylim=(0.5, max(10, 1.6 * of_class.sum())))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.axvline(scores.threshold, color=ROLE_COLOURS[scores.role], linestyle=(0, (4, 2)))


def calibration_plot(models: Sequence[tuple[Role, Sequence[CalibrationBin]]]) -> str | None:
    """Observed share of infected cells against the probability that was given, a point for each tenth of the cells."""
    shown = [(role, bins) for role, bins in models if bins]
    if not shown:
        return None

    def draw() -> Any:
        drawing, axes = figure(top=0.97 - 0.055 * len(shown))
        axes.plot([0, 1], [0, 1], color=SOFT, linewidth=0.9, linestyle=(0, (1, 2)))
        for role, bins in shown:
            line, marker = STYLES[role]
            x, y = [b.predicted for b in bins], [b.observed.value for b in bins]
            ends = [
                [b.observed.value - b.observed.low for b in bins],
                [b.observed.high - b.observed.value for b in bins],
            ]
            axes.errorbar(
                *(x, y, np.clip(ends, 0, None)),
                color=ROLE_COLOURS[role], linestyle=line, marker=marker, markersize=6, linewidth=1.4,
                elinewidth=0.9, capsize=2.5, label=TITLES[role], clip_on=False,
            )  # fmt: skip
        axes.set(xlabel=f"Mean probability of {POSITIVE} in the bin", ylabel=f"Share of {POSITIVE} cells in the bin")
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
        axes.grid(True)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.03, 1.0), borderaxespad=0.2)
        return drawing

    told = "; ".join(f"{TITLES[role]}, {len(bins)} bins" for role, bins in shown)
    return render(draw, "calibration", f"Calibration: observed share against given probability. {told}.")
