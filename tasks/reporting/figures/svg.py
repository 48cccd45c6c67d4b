"""Drawings as inline SVG text: no fixed colours, no ids that clash, no metadata, same numbers -> same bytes.

Colours leave here as CSS variables of the page (``--challenger``, ``--champion``, ``--other``, ``--soft``, ``--line``)
and as ``currentColor``, so one drawing serves light, dark and paper. Text stays text: small, crisp, and can be found.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from html import escape
from typing import Any, Literal

import numpy as np

from validation.records import Interval

Role = Literal["challenger", "champion", "other"]

# Matplotlib draws in these; _tidy swaps them for the variables of the page's style sheet.
# Not pure black: matplotlib omits it from its file, and an omitted colour is black on a dark page too.
INK, SOFT, LINE = "#111111", "#777777", "#cccccc"
# Okabe-Ito blue, vermillion and bluish green.
ROLE_COLOURS: dict[Role, str] = {"challenger": "#0072b2", "champion": "#d55e00", "other": "#009e73"}
_PAGE_COLOURS = {
    INK: "currentColor",
    SOFT: "var(--soft)",
    LINE: "var(--line)",
    "#ffffff": "var(--card)",
    ROLE_COLOURS["challenger"]: "var(--challenger)",
    ROLE_COLOURS["champion"]: "var(--champion)",
    ROLE_COLOURS["other"]: "var(--other)",
}
# Distinct without colour too: solid with a dot, dashed with a square, dotted with a triangle.
STYLES: dict[Role, tuple[Any, str]] = {
    "challenger": ("-", "o"),
    "champion": ((0, (4, 2)), "s"),
    "other": ((0, (1, 1.2)), "^"),
}
TITLES: dict[Role, str] = {"challenger": "Challenger", "champion": "Champion", "other": "Other CNN"}

_RC = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.family": "DejaVu Sans",  # shipped with matplotlib: the same layout on every machine
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.labelsize": 11,
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "lines.linewidth": 1.8,
} | {f"{axis}tick.{name}": value for axis in "xy" for name, value in
     (("color", SOFT), ("labelcolor", INK), ("labelsize", 10))}  # fmt: skip
_SIZE = (4.6, 4.1)  # inches of 72 units: a phone's width, so that text of size 11 is read as 11 px there
# Fixed, not fitted: plots side by side line up, and fitting would take most of the time of a drawing.
_MARGINS = {"left": 0.15, "right": 0.97, "bottom": 0.13, "top": 0.85}


def figure(rows: int = 1, **margins: float) -> tuple[Any, Any]:
    """Return a figure of the one size of all drawings, and its axes, one above the other."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no window, nothing to close

    drawing = Figure(figsize=_SIZE)
    return drawing, drawing.subplots(rows, 1, sharex=True, gridspec_kw=_MARGINS | margins)


def legend_above(axes: Any, left: float = -0.03, **options: Any) -> None:
    """Put the legend above the axes, aligned with their labels."""
    axes.legend(loc="lower left", bbox_to_anchor=(left, 1.0), borderaxespad=0.2, **options)


def errorbars(axes: Any, x: Sequence[float], intervals: Sequence[Interval], scale: float = 1.0, **style: Any) -> None:
    """Draw values with their intervals at the places ``x``, connected by a line."""
    value, low, high = scale * np.array([(m.value, m.low, m.high) for m in intervals]).T
    axes.errorbar(x, value, np.clip([value - low, high - value], 0, None), linewidth=1.4, **style)


def render(draw: Any, name: str, label: str) -> str:
    """Run ``draw`` under the settings of this module alone and return its figure as tidy SVG text."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # not what a matplotlibrc of this machine says
        matplotlib.rcParams.update(_RC)
        figure = draw()
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _tidy(text.getvalue(), name, label)


def _tidy(svg: str, name: str, label: str) -> str:
    """Return a matplotlib file as an element of a page: only ids in use, prefixed with ``name``; the page's colours."""
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


def interval_strip(value: float | None, low: float | None, high: float | None, bound: float) -> str:
    """Draw a value with its interval against the bound (upright line), on its own scale; the table has the numbers.

    An interval with a missing upper end runs off the edge.
    """
    value, low, high = (v if v is not None and math.isfinite(v) else None for v in (value, low, high))
    numbers = [v for v in (value, low, high, bound) if v is not None]
    span = max(numbers) - min(numbers) or 1.0
    start = min(numbers) - 0.12 * span

    def at(number: float) -> float:
        return round(4 + 132 * (number - start) / (1.24 * span), 1)

    whisker = (
        f'<path class="whisker" d="M{at(low)} 10H{140 if high is None else at(high)}"/>' if low is not None else ""
    )
    dot = f'<circle cx="{at(value)}" cy="10" r="4"/>' if value is not None else ""
    return (
        '<svg class="strip" viewBox="0 0 140 20" aria-hidden="true"><path class="axis" d="M0 10H140"/>'
        f'{whisker}<path class="bound" d="M{at(bound)} 1V19"/>{dot}</svg>'
    )
