"""Augmentation of training cells: drawn by NumPy, carried out by OpenCV here, or on a GPU from the same draws.

A batch looks the same on both. No framework is imported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks.models import Images, Variation


@dataclass(frozen=True)
class Draws:
    """The random augmentation of a batch of n cells.

    ``turns``: float64 [n, 2, 3], from a cell's pixel (x, y, 1) to its place (x, y) in the augmented picture.
    ``gains``: float32 [n, 1, 1, 3], the factor of each channel; None where the stain does not vary.
    """

    turns: npt.NDArray[np.float64]
    gains: npt.NDArray[np.float32] | None

    @property
    def returns(self) -> npt.NDArray[np.float32]:
        """The inverse, which a GPU's kernels take: where each augmented pixel comes from, float32 [n, 2, 3]."""
        back = np.linalg.inv(self.turns[:, :, :2])
        returns: npt.NDArray[np.float64] = np.concatenate([back, -back @ self.turns[:, :, 2:]], axis=2)
        return returns.astype(np.float32)


def draw(count: int, side: int, variation: Variation, rng: np.random.Generator) -> Draws:
    """Draw rotation, mirroring, shift, size and stain for ``count`` cells.

    A smear has no up or down: every angle is equally likely, and so is the mirror image. The stain varies by one factor
    per channel, ``exp(N(0, stain))``, half of it common to all three: slides differ in its strength and its hue.
    """
    centre = np.full(2, (side - 1) / 2)
    angles, mirrors = rng.uniform(0, 2 * np.pi, count), rng.choice((-1.0, 1.0), count)
    sizes = np.exp(rng.normal(0, variation.zoom, count))
    moves = rng.uniform(-variation.shift, variation.shift, (count, 2))
    along, across = sizes * np.cos(angles), sizes * np.sin(angles)
    turns = np.empty((count, 2, 3))
    turns[:, 0, :2] = np.stack([along * mirrors, -across], axis=1)
    turns[:, 1, :2] = np.stack([across * mirrors, along], axis=1)
    turns[:, :, 2] = centre + moves - turns[:, :, :2] @ centre
    if variation.stain == 0:
        return Draws(turns, None)
    noise = rng.normal(0, variation.stain, (count, 1, 1, 1)) + rng.normal(0, variation.stain, (count, 1, 1, 3))
    return Draws(turns, np.exp(noise / math.sqrt(2)).astype(np.float32))


def augment(images: Images, variation: Variation, rng: np.random.Generator) -> Images:
    """Return the batch, each cell augmented at random (``draw``). Padding stays black; new pixels are black."""
    import cv2

    side = images.shape[1]
    draws, out = draw(len(images), side, variation, rng), np.empty_like(images)
    for image, turn, into in zip(images, draws.turns, out, strict=True):
        cv2.warpAffine(image, turn, (side, side), dst=into, flags=cv2.INTER_LINEAR)
    if draws.gains is None:
        return out
    stained: Images = np.clip(out * draws.gains, 0, 255).astype(np.uint8)
    return stained


def smaller_side(side: int, size: float) -> int:
    """Return the side of cells ``size`` times as large, in pixels."""
    return max(1, round(side * size))


def shrunk(images: Images, size: float) -> Images:
    """Return the batch with sides ``size`` times as long, each new pixel the mean of its area."""
    import cv2

    side = smaller_side(images.shape[1], size)
    return np.stack([cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA) for image in images])


def area_weights(side: int, size: float) -> npt.NDArray[np.float32]:
    """Return the share of each old row in each new one, float32 [new, old], rows of sum 1: ``shrunk`` as a product."""
    new = smaller_side(side, size)
    edges = np.arange(new + 1) * side / new
    old = np.arange(side)
    inside = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
    weights: npt.NDArray[np.float64] = np.clip(inside, 0, None) * new / side
    return weights.astype(np.float32)
