"""Drawings over time: a training by epoch, the champion by night."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tasks.reporting.figures.svg import INK, LINE, ROLE_COLOURS, SOFT, errorbars, figure, legend_above, render
from validation.records import Candidate, EpochRecord, PastNight, Verdict

# name in the records, words, colour, line, marker
_SERIES = (
    ("sensitivity", "Sensitivity", ROLE_COLOURS["champion"], (0, (4, 2)), "s"),
    ("balanced_accuracy", "Balanced accuracy", INK, "-", "o"),
    ("specificity", "Specificity", ROLE_COLOURS["other"], (0, (1, 1.2)), "^"),
)
_ENDINGS = {"early": "stopped early", "deadline": "stopped by its deadline", "finished": "ended"}


def learning_plot(candidate: Candidate, name: str) -> str | None:
    """Draw loss and recorded accuracy by epoch, the kept epoch and the end marked; None without numbers."""
    epochs = [e for e in candidate.history if math.isfinite(e.train_loss) and math.isfinite(e.valid_loss)]
    if not epochs:
        return None
    with_accuracy = any(e.valid_accuracy is not None or e.train_accuracy is not None for e in epochs)
    kept = next((e for e in epochs if e.epoch == candidate.best_epoch), None)

    def draw() -> Any:
        drawing, axes = figure(2 if with_accuracy else 1, hspace=0.22)
        panels = list(axes) if with_accuracy else [axes]
        _panel(panels[0], epochs, "loss")
        panels[0].set_ylabel("Loss (nats)")
        panels[0].set_ylim(bottom=0)
        if with_accuracy:
            _panel(panels[1], epochs, "accuracy")
            panels[1].set_ylabel("Accuracy")
        for panel in panels:
            _mark(panel, candidate, epochs, kept)
        panels[-1].set_xlabel("Epoch")
        legend_above(panels[0], ncols=2, columnspacing=1.2)
        return drawing

    best = f"epoch {kept.epoch} kept, validation loss {kept.valid_loss:.3f}" if kept else "the kept one not among them"
    what = "Loss and accuracy" if with_accuracy else "Loss"
    return render(draw, name, f"{what} by epoch, {len(epochs)} epochs, {_ENDINGS[candidate.stopped]}: {best}.")


def _panel(axes: Any, epochs: Sequence[EpochRecord], metric: str) -> None:
    from matplotlib.ticker import MaxNLocator

    for side, label, colour, line, marker in (
        ("train", "Training", SOFT, (0, (2, 2)), "^"),
        ("valid", "Validation", ROLE_COLOURS["challenger"], "-", "o"),
    ):
        known = [(e.epoch, value) for e in epochs if (value := getattr(e, f"{side}_{metric}")) is not None]
        if known:
            x, y = zip(*known, strict=True)
            axes.plot(x, y, color=colour, linestyle=line, marker=marker, markersize=4.5, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.grid(True, axis="y")


def _mark(axes: Any, candidate: Candidate, epochs: Sequence[EpochRecord], kept: EpochRecord | None) -> None:
    first, last = epochs[0].epoch, epochs[-1].epoch
    axes.set_xlim(first - 0.4, last + 0.6)
    if kept is not None:
        axes.axvline(kept.epoch, color=LINE, linewidth=6, zorder=0, label=f"Kept: epoch {kept.epoch}")
    if candidate.stopped != "finished":
        ending = _ENDINGS[candidate.stopped].capitalize()
        axes.axvline(last + 0.3, color=INK, linewidth=1.2, linestyle=(0, (4, 2)), label=ending)


def champion_plot(nights: Sequence[PastNight]) -> str | None:
    """Draw the champion's metrics on the holdout, a point a look, with intervals; None for fewer than two looks."""
    if len(nights) < 2:
        return None

    def draw() -> Any:
        drawing, axes = figure(top=0.86)
        for shift, (name, label, colour, line, marker) in zip((-0.12, 0.0, 0.12), _SERIES, strict=True):
            known = [(i + shift, m) for i, night in enumerate(nights) if (m := getattr(night, name)) is not None]
            if known:
                errorbars(
                    axes, [at for at, _ in known], [m for _, m in known], scale=100, color=colour, linestyle=line,
                    marker=marker, markersize=5, elinewidth=0.8, capsize=2, label=label,
                )  # fmt: skip
        for index, night in enumerate(nights):
            if night.verdict is Verdict.PROMOTED:
                axes.axvline(index, color=LINE, linewidth=6, zorder=0)
        step = max(1, math.ceil(len(nights) / 5))
        places = range(0, len(nights), step)
        # Two looks on one day, by hand, are labelled with the hour.
        form = "%m-%d %H:%M" if len({night.at.date() for night in nights}) < len(nights) else "%Y-%m-%d"
        axes.set_xticks(places, [f"{nights[i].at:{form}}" for i in places], fontsize=9)
        axes.set(xlim=(-0.5, len(nights) - 0.5), xlabel="Look at the holdout (UTC)")
        axes.set_ylabel("Holdout cells called right (%)")
        axes.grid(True, axis="y")
        legend_above(axes, left=-0.05, ncols=3, columnspacing=1.0, handlelength=1.6, fontsize=9.5)
        return drawing

    label = f"Balanced accuracy, sensitivity and specificity of the champion at {len(nights)} looks."
    return render(draw, "history", label)
