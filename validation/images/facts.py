"""The facts of one image, and its problems by fixed rules and by learned bounds.

``validation.images.measure`` measures them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from validation.images.limits import size_problems

if TYPE_CHECKING:
    import pandas as pd

    from validation.rules import DataRules

# Increase it when an image would get other facts: cached ones are measured again.
FACTS_VERSION = 1


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """The measurements of one image.

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
        edge_clipping: the cell pixels on one side of the picture, at most, over the side of a square of the cell's
            area. About 0.2 for a round cell that just touches; near 1 for one that is cut through.
        brightness: mean over the cell's pixels and channels, 0-255.
        contrast: standard deviation of the cell's grey values, its rim left out, 0-128.
        focus: log10 of the variance of the Laplacian (4 neighbours) of the cell's grey values, its rim left out,
            plus 1.
        hue: of the cell's mean colour, degrees 0-360 (0 is red); 0 for grey.
        saturation: of the cell's mean colour, 0-1 (HSV).
        fingerprint: hex digits, similar for similar cells (validation.images.fingerprints).
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
    """One problem of one image: a reason code for tables, and a detail for people."""

    reason: str
    detail: str


# A picture that is this full and this even is an empty field of the microscope, not a cell.
_EMPTY_FIELD = 0.99, 4.0
# Below this saturation a colour is grey and its hue meaningless.
_GREY = 0.05


def judge_image(facts: ImageFacts, rules: DataRules, bounds: Mapping[str, tuple[float, float]]) -> list[Problem]:
    """Return all problems of one image; ``bounds`` (fact -> low, high) are those of ``learn_bounds``.

    A fact without a bound is not judged. Without a cell, nothing about the cell is judged.
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

    A bound is ``reach`` times as far from the median as the quantile of its side (2%, 98%). The reaches are the
    smallest at which patients outside the learned ones give almost no false alarms (docs/data.md).
    """

    reason: str
    reach: float
    low_is_wrong: bool = True
    high_is_wrong: bool = True


_LEARNED = {
    # Good images already have a focus close to the end of the range, and blurred cells are just below: a short reach.
    "focus": _Learned("out of focus", 1.3, high_is_wrong=False),
    "brightness": _Learned("stain out of range", 2.0),
    "saturation": _Learned("stain out of range", 2.5),
    # Stains of one hue give a range without width, those of several hues one with gaps: quantiles, and a margin.
    "hue": _Learned("stain out of range", 1.0),
    "cell_pixels": _Learned("unusual size", 2.5),
}
_TAIL = 0.02
_HUE_MARGIN = 30.0
# Cells that were all cut to one size give a range without width, too: a quarter more or less area is not unusual.
_LEAST_SIZES = float(np.log(1.25))


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
    and each side by its own tail, since none of these facts is symmetric. The logarithm of the size is used, with at
    least a factor of 1.25 either way. Hue is taken around its circular mean with 30 degrees on either side, so its low
    may be below 0 and its high above 360.
    Bounds describe only the patients that they were learned from: a further patient's other stain exceeds them.
    """
    if facts.empty:
        return {}
    bounds = {name: _range(facts[name].to_numpy(float), _LEARNED[name].reach) for name in _LEARNED}
    low, high = _range(_unrolled(facts), _LEARNED["hue"].reach)
    bounds["hue"] = low - _HUE_MARGIN, high + _HUE_MARGIN
    sizes = np.log(np.maximum(facts["cell_pixels"].to_numpy(float), 1))
    low, high = _range(sizes, _LEARNED["cell_pixels"].reach, _LEAST_SIZES)
    bounds["cell_pixels"] = float(np.exp(low)), float(np.exp(high))
    return bounds


def _range(values: npt.NDArray[np.float64], reach: float, least: float = 0.0) -> tuple[float, float]:
    low, middle, high = (float(q) for q in np.quantile(values, [_TAIL, 0.5, 1 - _TAIL]))
    return middle - max(least, reach * (middle - low)), middle + max(least, reach * (high - middle))


def _unrolled(facts: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Return the hues of coloured cells in degrees, within 180 of their mean direction."""
    hue = facts.loc[facts["saturation"] >= _GREY, "hue"].to_numpy(float)
    if not len(hue):
        return np.array([-180.0, 180.0])
    radians = np.radians(hue)
    middle = float(np.degrees(np.arctan2(np.sin(radians).mean(), np.cos(radians).mean())))
    return (hue - middle + 180) % 360 - 180 + middle
