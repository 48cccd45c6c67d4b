"""One image as one row of facts, and what is wrong with it by fixed rules and by bounds that were learned.

How the facts are measured stands in ``validation.images.measure``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from validation.images.limits import Limits, size_problems

if TYPE_CHECKING:
    import pandas as pd

# Raise it when an image would be given other facts: what was kept of the old ones is measured again.
FACTS_VERSION = 1


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What was measured of one image.

    Attributes:
        format: PNG or JPEG.
        mode: of the pixels; RGB.
        width, height: of the picture, px.
        bytes: size of the file.
        pixels: SHA-256 of shape and pixels; equal for equal pixels however they were stored.
        cell_share: share of the picture that is cell, 0-1.
        cell_pixels: area of the cell, px.
        aspect: longer side of the picture over the shorter.
        objects: sizeable pieces of the mask.
        edge_clipping: the longest stretch of cell along one side of the picture, over the side of a square of the
            cell's area. About 0.2 for a round cell that just touches; near 1 for one that is cut through.
        brightness: mean over the cell's pixels and channels, 0-255.
        contrast: standard deviation of the cell's grey values, its rim left out, 0-128.
        focus: log10 of the variance of the Laplacian (4 neighbours) of the cell's grey values, its rim left out,
            plus 1.
        hue: of the cell's mean colour, degrees 0-360 (0 is red); 0 for grey.
        saturation: of the cell's mean colour, 0-1 (HSV).
        fingerprint: hex digits that stay nearly the same for nearly the same cell (validation.images.fingerprints).
    """

    format: str
    mode: str
    width: int
    height: int
    bytes: int
    pixels: str
    cell_share: float
    cell_pixels: int
    aspect: float
    objects: int
    edge_clipping: float
    brightness: float
    contrast: float
    focus: float
    hue: float
    saturation: float
    fingerprint: str


FACT_NAMES = tuple(field.name for field in fields(ImageFacts))


class Problem(NamedTuple):
    """One thing that is wrong with one image: a reason code for tables, and a detail for people."""

    reason: str
    detail: str


class ImageRules(Limits, Protocol):
    """The fixed rules that an image is held to; ``validation.rules.DataRules`` is one."""

    @property
    def min_cell_share(self) -> float:
        """Share of the picture that is cell at least."""

    @property
    def min_contrast(self) -> float:
        """Standard deviation of a cell's grey values at least."""

    @property
    def max_edge_clipping(self) -> float:
        """See ``ImageFacts.edge_clipping``; above it a cell is taken to be cut off."""


# Without any black around it, a picture this even is an empty field of the microscope, not a cell.
_EMPTY_FIELD = 0.99, 4.0
# Below this saturation a colour is grey and its hue an accident.
_GREY = 0.05


def judge_image(facts: ImageFacts, rules: ImageRules, bounds: Mapping[str, tuple[float, float]]) -> list[Problem]:
    """Return all that is wrong with one image; ``bounds`` (fact -> low, high) as ``learn_bounds`` gives them.

    A fact without a bound is not judged. Where there is no cell, nothing is said about the cell.
    """
    problems = [Problem(*problem) for problem in size_problems(facts.width, facts.height, rules)]
    if facts.cell_share < rules.min_cell_share or not facts.cell_pixels:
        share = f"{facts.cell_share:.1%} of the picture is not black, at least {rules.min_cell_share:.1%} expected"
        return [*problems, Problem("no cell", share)]
    least = _EMPTY_FIELD[1] if facts.cell_share > _EMPTY_FIELD[0] else rules.min_contrast
    if facts.contrast < max(least, rules.min_contrast):
        return [*problems, Problem("blank", f"contrast {facts.contrast:.2f} grey levels, at least {least:g} expected")]
    if facts.objects > 1:
        problems.append(Problem("several cells", f"{facts.objects} pieces on black, one expected"))
    if facts.edge_clipping > rules.max_edge_clipping:
        seen = f"{facts.edge_clipping:.2f} of its side lies along an edge of the picture"
        problems.append(Problem("cell cut off", f"{seen}, at most {rules.max_edge_clipping:g} expected"))
    return problems + _out_of_bounds(facts, bounds)


class _Learned(NamedTuple):
    """How a fact is judged against a learned range.

    A bound lies ``reach`` times as far from the median as the quantile of its side (2%, 98%). The reaches are the
    smallest at which patients that were not learned from give next to no false alarms (docs/data.md).
    """

    reason: str
    reach: float
    low_is_wrong: bool = True
    high_is_wrong: bool = True


_LEARNED = {
    # Focus is close to its range's end already in good images, and a blurred cell lies just below: a short reach.
    "focus": _Learned("out of focus", 1.3, high_is_wrong=False),
    "brightness": _Learned("stain out of range", 2.0),
    "saturation": _Learned("stain out of range", 2.5),
    # Stains of one hue make a range of no width, those of several one with gaps: quantiles, and a margin.
    "hue": _Learned("stain out of range", 1.0),
    "cell_pixels": _Learned("unusual size", 2.5),
}
_TAIL = 0.02
_HUE_MARGIN = 30.0


def _out_of_bounds(facts: ImageFacts, bounds: Mapping[str, tuple[float, float]]) -> list[Problem]:
    wrong: dict[str, list[str]] = {}
    for name, learned in _LEARNED.items():
        if name not in bounds or (name == "hue" and facts.saturation < _GREY):
            continue
        value, (low, high) = float(getattr(facts, name)), bounds[name]
        if name == "hue":
            inside = (value - low) % 360 <= high - low
        else:
            inside = not (learned.low_is_wrong and value < low) and not (learned.high_is_wrong and value > high)
        if not inside:
            seen = f"{name.replace('_', ' ')} {value:g}, {low:.4g} to {high:.4g} expected"
            wrong.setdefault(learned.reason, []).append(seen)
    return [Problem(reason, "; ".join(details)) for reason, details in wrong.items()]


def learn_bounds(facts: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Return the range (low, high) of each learned fact in good images, one row each; none without images.

    low = median - reach (median - 2% quantile), high likewise: quantiles, since a few bad images must not widen it,
    and each side by its own tail, since none of these facts is symmetric. Size is taken by its logarithm. Hue is
    taken around its circular mean and gets 30 degrees on either side, so its low may be below 0 and its high above
    360. A bound says what the patients behind it were like: learned from eight, it fires on a ninth's other stain.
    """
    if facts.empty:
        return {}
    bounds = {name: _range(facts[name].to_numpy(float), _LEARNED[name].reach) for name in _LEARNED}
    low, high = _range(_unrolled(facts), _LEARNED["hue"].reach)
    bounds["hue"] = low - _HUE_MARGIN, high + _HUE_MARGIN
    sizes = np.log(np.maximum(facts["cell_pixels"].to_numpy(float), 1))
    low, high = _range(sizes, _LEARNED["cell_pixels"].reach)
    bounds["cell_pixels"] = float(np.exp(low)), float(np.exp(high))
    return bounds


def _range(values: npt.NDArray[np.float64], reach: float) -> tuple[float, float]:
    low, middle, high = (float(q) for q in np.quantile(values, [_TAIL, 0.5, 1 - _TAIL]))
    return middle - reach * (middle - low), middle + reach * (high - middle)


def _unrolled(facts: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Return the hues of coloured cells in degrees, cut open opposite to their mean direction."""
    hue = facts.loc[facts["saturation"] >= _GREY, "hue"].to_numpy(float)
    if not len(hue):
        return np.array([-180.0, 180.0])
    radians = np.radians(hue)
    middle = float(np.degrees(np.arctan2(np.sin(radians).mean(), np.cos(radians).mean())))
    return (hue - middle + 180) % 360 - 180 + middle
