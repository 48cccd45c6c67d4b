"""Why an image is refused before it is measured, and the limits for its header."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:  # a worker that decodes images needs no pydantic
    from validation.rules import DataRules

# All values of ``BadImage.reason``.
REFUSALS = (
    "not an image",
    "wrong format",
    "truncated",
    "damaged image",
    "too small",
    "too large",
    "odd aspect",
    "16-bit",
    "alpha",
    "wrong mode",
    "animated",
)


class BadImage(Exception):
    """Why an image is left out: a reason code for tables, and a detail for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class SafeLimits(NamedTuple):
    """Limits that keep a decoder safe and refuse nothing else, so that small or odd images can be judged later."""

    max_pixels: int
    min_pixels: int = 1
    max_aspect: float = math.inf


Limits: TypeAlias = "SafeLimits | DataRules"


def check_size(width: int, height: int, limits: Limits) -> None:
    """Check a header's size, before any pixel is decoded.

    Raises:
        BadImage: too small, too large, odd aspect.
    """
    for reason, detail in size_problems(width, height, limits):
        raise BadImage(reason, detail)


def size_problems(width: int, height: int, limits: Limits) -> list[tuple[str, str]]:
    """Return the problems of a size, as (reason, detail)."""
    size, problems = f"{width} x {height} pixels", []
    if min(width, height) < limits.min_pixels:
        problems.append(("too small", f"{size}, at least {limits.min_pixels} a side expected"))
    if max(width, height) > limits.max_pixels:
        problems.append(("too large", f"{size}, at most {limits.max_pixels} a side expected"))
    if max(width, height) > limits.max_aspect * min(width, height):
        problems.append(("odd aspect", f"{size}, at most {limits.max_aspect:g} times as long as wide expected"))
    return problems
