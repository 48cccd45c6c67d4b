"""Drawings with one dot a patient: challenger against champion, and cells called infected against those filed so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tasks.reporting.format import count, shorten

# Units of a drawing: a phone shows one of them as about one pixel, so that text of 11 can be read there.
WIDTH, ROW, HEIGHT, TOP = 360, 13, 300, 20
NAMED = 30  # more patients than these are drawn closer, without their names
LARGEST = 6.0  # radius of the patient with the most cells

Patient = Mapping[str, Any]


def difference_plot(patients: Sequence[Patient]) -> str:
    """Draw each patient's errors that the challenger avoids in 100 cells, most lost first; empty without patients."""
    if not patients:
        return ""
    rows = sorted(((100 * (p["champion"] - p["mistakes"]) / p["cells"], p) for p in patients), key=lambda row: row[0])
    named, most = len(rows) <= NAMED, max(p["cells"] for p in patients)
    furthest = _scale(rows)
    pitch = ROW if named else HEIGHT / len(rows)
    left, right, bottom = 112 if named else 14, WIDTH - 14, TOP + pitch * len(rows)
    middle, reach = (left + right) / 2, (right - left) / 2

    def drawn(index: int, value: float, patient: Patient) -> str:
        shown = max(-1.0, min(1.0, value / furthest))
        y, x = round(TOP + pitch * (index + 0.5), 1), round(middle + reach * shown, 1)
        role = "challenger" if value > 0 else "champion" if value < 0 else "same"
        words = ""
        if named:
            amounts = f"{patient['infected']}/{patient['cells']}"
            words = _text(0, y + 3.5, shorten(patient["group"], 10)) + _text(left - 8, y + 3.5, amounts, "end")
        line = f'<path d="M{middle} {y}H{x}"/>' if value else ""
        beyond = ' class="beyond"' if abs(value) > furthest else ""
        return f'<g class="{role}">{line}<circle{beyond} cx="{x}" cy="{y}" r="{_radius(patient, most)}"/>{words}</g>'

    ends = "".join(
        (
            _text(middle - 6, 11, "champion better", "end", "champion"),
            _text(middle + 6, 11, "challenger better", "start", "challenger"),
            _text(left, bottom + 14, f"{-furthest:.0f}".replace("-", "−")),
            _text(middle, bottom + 14, "errors avoided in 100 cells", "middle"),
            _text(right, bottom + 14, f"+{furthest:.0f}", "end"),
        )
    )
    better, worse = (sum(value * sign > 0 for value, _ in rows) for sign in (1, -1))
    label = (
        f"Errors in 100 cells that the challenger avoids, by patient: {count(better, 'patient')} with fewer "
        f"errors than the champion makes, {worse} with more, {len(rows) - better - worse} with as many."
    )
    body = "".join(drawn(index, value, patient) for index, (value, patient) in enumerate(rows))
    return _svg(label, bottom + 18, f'<path class="axis" d="M{middle} {TOP}V{bottom}"/>{body}{ends}')


def _scale(rows: Sequence[tuple[float, Patient]]) -> float:
    """Return the largest difference that is drawn to scale: those of patients with few cells would hide the others'."""
    cells = sum(p["cells"] for _, p in rows)
    rest, furthest = 0, 1.0
    for value, patient in sorted(((abs(value), p) for value, p in rows), key=lambda row: row[0], reverse=True):
        rest += patient["cells"]
        if rest > 0.02 * cells:
            furthest = max(1.0, value)
            break
    return furthest


def called_plot(patients: Sequence[Patient], called: str) -> str:
    """Draw each patient's share of cells called infected (``called`` names the count) against the filed share.

    Patients without an infected cell are drawn apart, at the left, from few cells to many.
    """
    if not patients:
        return ""
    healthy = sorted((p for p in patients if not p["infected"]), key=lambda p: (p["cells"], p["group"]))
    infected, most = [p for p in patients if p["infected"]], max(p["cells"] for p in patients)
    left, bottom = 38.0, 210.0
    split = left + 80 if healthy else left
    right, high = WIDTH - 20.0, bottom - TOP

    def dot(x: float, patient: Patient) -> str:
        y = bottom - high * patient[called] / patient["cells"]
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{_radius(patient, most)}"/>'

    start, half = split + 12, (TOP + bottom) / 2
    parts = [
        f'<path class="axis" d="M{left} {TOP}V{bottom}H{right}M{left} {TOP}H{right}M{left} {half}H{right}"/>',
        f'<path class="diagonal" d="M{start} {bottom}L{right} {TOP}"/>',
        *(_text(left - 5, y + 4, text, "end") for y, text in ((bottom, "0%"), (half, "50%"), (TOP, "100%"))),
        _text(left, 11, "called infected"),
        *(_text(start + (right - start) * s, bottom + 14, f"{100 * s:.0f}%", "middle") for s in (0, 0.5, 1)),
        _text((start + right) / 2, bottom + 28, "of the patient's cells filed infected", "middle"),
    ]
    if healthy:
        parts.append(f'<path class="axis" d="M{split} {TOP}V{bottom}"/>')
        parts.append(_text((left + split) / 2, bottom + 28, "healthy", "middle"))
    step = 80 / (len(healthy) + 1)
    parts.append('<g class="healthy">' + "".join(dot(left + step * (i + 1), p) for i, p in enumerate(healthy)) + "</g>")
    filed = (dot(start + (right - start) * p["infected"] / p["cells"], p) for p in infected)
    parts.append('<g class="infected">' + "".join(filed) + "</g>")
    return _svg(called_words(patients, called), bottom + 34, "".join(parts))


def called_words(patients: Sequence[Patient], called: str) -> str:
    """Return what ``called_plot`` shows: the largest distance, and what is called infected in healthy patients."""
    apart = max(abs(p[called] - p["infected"]) / p["cells"] for p in patients)
    healthy = sorted(p[called] / p["cells"] for p in patients if not p["infected"])
    words = f"Share of cells called infected and share filed infected differ by at most {100 * apart:.0f} points"
    if not healthy:
        return f"{words}; no patient is healthy."
    middle = healthy[len(healthy) // 2]
    return (
        f"{words}. Of the cells of {count(len(healthy), 'healthy patient')}, {100 * healthy[0]:.1f}% to "
        f"{100 * healthy[-1]:.1f}% are called infected, in the middle patient {100 * middle:.1f}%."
    )


def _radius(patient: Patient, most: int) -> float:
    """Return a radius whose circle has an area in proportion to the patient's cells."""
    return round(max(0.7, LARGEST * math.sqrt(patient["cells"] / most)), 1)


def _text(x: float, y: float, words: str, anchor: str = "start", role: str = "") -> str:
    kind = f' class="{role}"' if role else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{escape(words)}</text>'


def _svg(label: str, height: float, body: str) -> str:
    return f'<svg class="dots" viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">{body}</svg>'
