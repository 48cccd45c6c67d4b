"""Plots of a report as inline SVG text: no fixed colours, no ids that clash, no metadata, same numbers -> same bytes.

Colours leave here as CSS variables of the page (``--challenger``, ``--champion``, ``--soft``, ``--line``) and as
``currentColor``, so one drawing serves light, dark and paper. Text stays text: it is small, crisp, and can be found.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from validation.records import NEGATIVE, POSITIVE, Candidate

Role = Literal["challenger", "champion"]
Floats = NDArray[np.float64]

# Matplotlib draws in these; _tidy swaps them for what the page's style sheet decides.
# Not black itself: matplotlib leaves that out of its file, and left out means black, on a dark page too.
INK, SOFT, LINE = "#111111", "#777777", "#cccccc"
ROLE_COLOURS: dict[Role, str] = {"challenger": "#0072b2", "champion": "#d55e00"}  # Okabe-Ito blue and vermillion
_PAGE_COLOURS = {
    INK: "currentColor",
    SOFT: "var(--soft)",
    LINE: "var(--line)",
    "#ffffff": "var(--card)",
    ROLE_COLOURS["challenger"]: "var(--challenger)",
    ROLE_COLOURS["champion"]: "var(--champion)",
}
# Told apart without colour too: solid line with a dot, dashed line with a square.
_STYLES: dict[Role, tuple[Any, str]] = {"challenger": ("-", "o"), "champion": ((0, (4, 2)), "s")}

_RC = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "font.family": "DejaVu Sans",  # shipped with matplotlib: the same layout on every machine
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelsize": 11,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "lines.linewidth": 1.8,
}
_SIZE = (4.6, 4.1)  # inches of 72 units: a phone's width, so that text of size 11 is read as 11 px there
# Fixed, not fitted: plots side by side line up, and fitting would take most of the time of a drawing.
_MARGINS = {"left": 0.15, "right": 0.97, "bottom": 0.13, "top": 0.85}


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


def _figure(rows: int = 1, **margins: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # not pyplot: no global state, no window, nothing to close

    figure = Figure(figsize=_SIZE)
    return figure, figure.subplots(rows, 1, sharex=True, gridspec_kw=_MARGINS | margins)


def _draw(draw: Any, name: str, label: str) -> str:
    """Run ``draw`` under our settings alone and return its figure as tidy SVG text."""
    import matplotlib

    with matplotlib.rc_context(_RC):
        figure = draw()
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _tidy(text.getvalue(), name, label)


def _tidy(svg: str, name: str, label: str) -> str:
    """Matplotlib's file as an element of a page: only the ids in use, prefixed with ``name``; colours of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    used = set(re.findall(r"#(\w+)[\")]", svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'xlink:href="#(\w+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#(\w+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r"<[^>]+>", lambda m: _tidy_tag(m[0]), svg)
    svg = re.sub(r"<defs>\s*</defs>|>\s*\n\s*(?=<)", lambda m: ">" if m[0].startswith(">") else "", svg)
    box = re.search(r'viewBox="[^"]*"', svg)
    head = f'<svg {box[0] if box else ""} role="img" aria-label="{escape(label)}">'
    return head + svg[svg.index(">") + 1 :].strip()


def _tidy_tag(tag: str) -> str:
    tag = re.sub(r"\d+\.\d{3,}", lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), tag)
    tag = re.sub(r" ?font-family: [^;\"]*;?", "", tag)
    for drawn, shown in _PAGE_COLOURS.items():
        tag = tag.replace(drawn, shown)
    return re.sub(r"\s*\n\s*", " ", tag)


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
            line, marker = _STYLES[scores.role]
            x, y = where[scores.role]
            style = {"color": ROLE_COLOURS[scores.role], "linestyle": line}
            axes.plot(*curve(scores), **style)
            label = f"{scores.role.capitalize()}, threshold {scores.threshold:.3f}"
            axes.plot(
                [x], [y], marker=marker, markersize=8, markeredgecolor="#ffffff", clip_on=not named, zorder=5, **style
            )
            if named:
                axes.plot([], [], marker=marker, markersize=7, label=label, **style)

    def draw() -> Any:
        figure, axes = _figure()
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
        return figure

    spots = "; ".join(f"{role} at {x:.3f}, {y:.3f}" for role, (x, y) in where.items())
    return _draw(draw, name, f"{labels[1]} against {labels[0]}. At its threshold: {spots}.")


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
        figure, axes = _figure(2, top=0.93, hspace=0.28)
        for axis, (label, of_class, wrong, mistake) in zip(axes, panels, strict=True):
            _panel(axis, scores, edges, of_class, wrong)
            title = f"{label}: {of_class.sum():,} cells, {(of_class & wrong).sum():,} {mistake}"
            axis.set_title(title, fontsize=11, loc="left")
        axes[1].set_xlabel(f"Probability of {POSITIVE}; dashed: threshold {scores.threshold:.3f}")
        figure.supylabel("Cells (logarithmic)", fontsize=11, x=0.01)
        return figure

    told = ", ".join(
        f"{int((of & wrong).sum())} {mistake} of {int(of.sum())} {label}" for label, of, wrong, mistake in panels
    )
    return _draw(draw, f"scores-{scores.role}", f"Histogram of the {scores.role}'s scores by class: {told}.")


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


def learning_plot(candidate: Candidate, name: str) -> str | None:
    """Training and validation loss by epoch, the best epoch marked; None where no loss was a number."""
    epochs = [e for e in candidate.history if math.isfinite(e.train_loss) and math.isfinite(e.valid_loss)]
    if not epochs:
        return None
    x = [e.epoch for e in epochs]
    best = next((e for e in epochs if e.epoch == candidate.best_epoch), None)

    def draw() -> Any:
        from matplotlib.ticker import MaxNLocator

        figure, axes = _figure()
        axes.plot(
            x, [e.train_loss for e in epochs], color=SOFT, linestyle=(0, (2, 2)), marker="^", label="Training loss"
        )
        axes.plot(
            x, [e.valid_loss for e in epochs], color=ROLE_COLOURS["challenger"], marker="o", label="Validation loss"
        )
        if best is not None:
            axes.axvline(best.epoch, color=LINE, linewidth=5, zorder=0, label=f"Best epoch: {best.epoch}")
        axes.set(xlabel="Epoch", ylabel="Binary cross-entropy (nats)", xlim=(min(x) - 0.4, max(x) + 0.4))
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(True, axis="y")
        axes.legend(loc="lower left", bbox_to_anchor=(-0.03, 1.0), borderaxespad=0.2, ncols=2, columnspacing=1.4)
        return figure

    said = f"best epoch {best.epoch}, validation loss {best.valid_loss:.3f}" if best else "best epoch not among them"
    return _draw(draw, name, f"Loss by epoch, {len(epochs)} epochs: {said}.")


def interval_strip(value: float | None, low: float | None, high: float | None, bound: float) -> str:
    """A value with its interval against the bound (upright line), on a scale of its own; the table has the numbers.

    A missing end of a one-sided interval runs off the edge.
    """
    numbers = [v for v in (value, low, high, bound) if v is not None and math.isfinite(v)]
    span = max(numbers) - min(numbers) or 1.0
    start = min(numbers) - 0.12 * span

    def at(number: float) -> float:
        return round(4 + 132 * (number - start) / (1.24 * span), 1)

    parts = ['<svg class="strip" viewBox="0 0 140 20" aria-hidden="true"><path class="axis" d="M0 10H140"/>']
    if low is not None and math.isfinite(low):
        end = at(high) if high is not None and math.isfinite(high) else 140
        parts.append(f'<path class="whisker" d="M{at(low)} 10H{end}"/>')
    if math.isfinite(bound):
        parts.append(f'<path class="bound" d="M{at(bound)} 1V19"/>')
    if value is not None and math.isfinite(value):
        parts.append(f'<circle cx="{at(value)}" cy="10" r="4"/>')
    return "".join(parts) + "</svg>"
