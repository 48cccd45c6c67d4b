"""Drawings over time: a training by epoch, the champion by night."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tasks.reporting.figures.svg import INK, LINE, ROLE_COLOURS, SOFT, errorbars, figure, legend_above, render
from tasks.reporting.format import count
from validation.records import Candidate, EpochRecord, Member, Night, PastNight, Verdict

# name in the records, words, colour, line, marker
_SERIES = (
    ("sensitivity", "Sensitivity", ROLE_COLOURS["champion"], (0, (4, 2)), "s"),
    ("balanced_accuracy", "Balanced accuracy", INK, "-", "o"),
    ("specificity", "Specificity", ROLE_COLOURS["other"], (0, (1, 1.2)), "^"),
)


def learning_plot(candidate: Candidate, name: str) -> str | None:
    """Draw loss and recorded accuracy by epoch, a line a member, the kept epochs marked; None without numbers."""
    trainings = [(_with_losses(member), member.best_epoch) for member in candidate.members]
    trainings = [(epochs, best) for epochs, best in trainings if epochs]
    if not trainings:
        return None
    with_accuracy = any(e.valid_accuracy is not None for epochs, _ in trainings for e in epochs)

    def draw() -> Any:
        drawing, axes = figure(2 if with_accuracy else 1, hspace=0.22)
        panels = list(axes) if with_accuracy else [axes]
        for panel, metric, label in zip(panels, ("loss", "accuracy"), ("Loss (nats)", "Accuracy"), strict=False):
            _panel(panel, trainings, metric)
            panel.set_ylabel(label)
        panels[0].set_ylim(bottom=0)
        panels[-1].set_xlabel("Epoch")
        legend_above(panels[0], ncols=3, columnspacing=1.2)
        return drawing

    what = "Loss and accuracy" if with_accuracy else "Loss"
    kept = ", ".join(str(best) for _, best in trainings)
    longest = max(len(epochs) for epochs, _ in trainings)
    label = f"{what} by epoch of {count(len(trainings), 'member')}, at most {count(longest, 'epoch')}; kept: {kept}."
    return render(draw, name, label)


def _with_losses(member: Member) -> list[EpochRecord]:
    return [e for e in member.history if math.isfinite(e.train_loss) and math.isfinite(e.valid_loss)]


def _panel(axes: Any, trainings: Sequence[tuple[Sequence[EpochRecord], int]], metric: str) -> None:
    from matplotlib.ticker import MaxNLocator

    colour = ROLE_COLOURS["challenger"]
    for side, style in (("train", {"color": SOFT, "linestyle": (0, (2, 2))}), ("valid", {"color": colour})):
        for epochs, _ in trainings:
            known = [(e.epoch, value) for e in epochs if (value := getattr(e, f"{side}_{metric}")) is not None]
            axes.plot(*zip(*known, strict=True), linewidth=1.0, **style) if known else None
        axes.plot([], [], linewidth=1.0, label={"train": "Training", "valid": "Tuning"}[side], **style)
    marks = [
        (e.epoch, value)
        for epochs, best in trainings
        for e in epochs
        if e.epoch == best and (value := getattr(e, f"valid_{metric}")) is not None
    ]
    axes.plot([x for x, _ in marks], [y for _, y in marks], "o", color=colour, markersize=5, label="Kept")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.grid(True, axis="y")


def champion_plot(nights: Sequence[PastNight]) -> str | None:
    """Draw the champion's metrics, a point a look, with intervals; None for fewer than two looks."""
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
        axes.set(xlim=(-0.5, len(nights) - 0.5), xlabel="Look (UTC)")
        axes.set_ylabel("Judged cells called right (%)")
        axes.grid(True, axis="y")
        legend_above(axes, left=-0.05, ncols=3, columnspacing=1.0, handlelength=1.6, fontsize=9.5)
        return drawing

    label = f"Balanced accuracy, sensitivity and specificity of the champion at {len(nights)} looks."
    return render(draw, "history", label)


def decisions_plot(nights: Sequence[Night]) -> str:
    """Draw challengers as dots and the champion as steps, oldest night first; empty for fewer than two looks.

    The champion's line is at its balanced accuracy when it was promoted.
    """
    values = [night.metrics.get("balanced_accuracy") for night in nights]
    known = [(place, m.value) for place, m in enumerate(values) if m is not None]
    if len(known) < 2:
        return ""
    low, high = (pick(value for _, value in known) for pick in (min, max))
    span, last = max(high - low, 0.01), max(1, len(nights) - 1)

    def at(place: float, value: float) -> tuple[float, float]:
        return round(48 + 292 * place / last, 1), round(124 - 100 * (value - low) / span, 1)

    dots, line, champion = [], "", None
    for place, value in known:
        x, y = at(place, value)
        promoted = nights[place].verdict is Verdict.PROMOTED
        dots.append(
            f'<circle class="{"made" if promoted else "open"}" cx="{x}" cy="{y}" r="{3.5 if promoted else 2}"/>'
        )
        if promoted:
            line += f"H{x}V{y}" if champion else f"M{x} {y}"
            champion = value
    line += f"H{at(last, low)[0]}" if champion else ""
    apart = at(0, low)[1] - at(0, high)[1] >= 12  # else one label would lie on the other
    words = [
        f'<text x="44" y="{at(0, value)[1] + 4}" text-anchor="end">{100 * value:.1f}%</text>'
        for value in (low, high)[: 1 + apart]
    ] + [
        f'<text x="{at(place, low)[0]}" y="144" text-anchor="{anchor}">{nights[place].started_at:%Y-%m-%d}</text>'
        for place, anchor in ((0, "start"), (len(nights) - 1, "end"))
    ]
    steps = f'<path class="axis" d="M48 {at(0, high)[1]}V128H348"/><path class="challenger" d="{line}"/>'
    label = f"Balanced accuracy of {count(len(known), 'challenger')}, {100 * low:.1f}% to {100 * high:.1f}%."
    return (
        f'<svg class="dots decisions" viewBox="0 0 360 150" role="img" aria-label="{label}">'
        f"{steps}{''.join(dots)}{''.join(words)}</svg>"
    )
