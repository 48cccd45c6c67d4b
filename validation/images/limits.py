"""Why an image is refused before it is measured, and the limits that its header is held to."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

# What ``BadImage.reason`` may be, in the order in which an image is looked at.
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


class Limits(Protocol):
    """What a header may claim; ``validation.rules.DataRules`` is one."""

    @property
    def min_pixels(self) -> int:
        """Width and height at least."""

    @property
    def max_pixels(self) -> int:
        """Width and height at most."""

    @property
    def max_aspect(self) -> float:
        """Longer side over shorter side at most."""


class SafeLimits(NamedTuple):
    """The limits that keep a decoder safe and refuse nothing else, so that what is small or odd can be judged later."""

    max_pixels: int
    min_pixels: int = 1
    max_aspect: float = math.inf


def check_size(width: int, height: int, limits: Limits) -> None:
    """Hold a header's size to the limits, before any pixel is decoded.

    Raises:
        BadImage: too small, too large, odd aspect.
    """
    for reason, detail in size_problems(width, height, limits):
        raise BadImage(reason, detail)


def size_problems(width: int, height: int, limits: Limits) -> list[tuple[str, str]]:
    """Return what is wrong with a size, as (reason, detail)."""
    size, found = f"{width} x {height} pixels", []
    if min(width, height) < limits.min_pixels:
        found.append(("too small", f"{size}, at least {limits.min_pixels} a side expected"))
    if max(width, height) > limits.max_pixels:
        found.append(("too large", f"{size}, at most {limits.max_pixels} a side expected"))
    if max(width, height) > limits.max_aspect * min(width, height):
        found.append(("odd aspect", f"{size}, at most {limits.max_aspect:g} times as long as wide expected"))
    return found
