"""How a training cell differs each time it is shown: drawn by NumPy, carried out by OpenCV here or by a GPU itself.

The same chance decides in both cases, so a batch looks the same wherever it is made. No framework is imported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tasks.models import Images, Variation

__all__ = ["Draws", "area_weights", "augment", "draw", "shrunk"]


@dataclass(frozen=True)
class Draws:
    """What chance has decided for a batch of n cells.

    ``turns``: float64 [n, 2, 3], from a cell's pixel (x, y, 1) to its place (x, y) in the picture that is shown.
    ``gains``: float32 [n, 1, 1, 3], the factor of each channel; None where the stain does not vary.
    """

    turns: npt.NDArray[np.float64]
    gains: npt.NDArray[np.float32] | None

    @property
    def returns(self) -> npt.NDArray[np.float32]:
        """The other way round, as a GPU's kernels ask for it: where each pixel shown comes from, float32 [n, 2, 3]."""
        back = np.linalg.inv(self.turns[:, :, :2])
        returns: npt.NDArray[np.float64] = np.concatenate([back, -back @ self.turns[:, :, 2:]], axis=2)
        return returns.astype(np.float32)


def draw(count: int, side: int, variation: Variation, rng: np.random.Generator) -> Draws:
    """Draw how each of ``count`` cells is turned, mirrored, moved and sized, and how strong its stain is.

    A smear has no up or down, so every angle is equally likely, and so is the mirror image. The stain varies by one
    factor a channel, ``exp(N(0, stain))``, half of it common to all three: between slides both its strength and its hue
    differ.
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
    """Return the batch, each cell varied at random (``draw``). Black padding stays black; what comes in is black."""
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
    """Return the side of cells that are shown ``size`` times as large, in pixels."""
    return max(1, round(side * size))


def shrunk(images: Images, size: float) -> Images:
    """Return the batch with sides ``size`` times as long, each new pixel the mean of the area that it covers."""
    import cv2

    side = smaller_side(images.shape[1], size)
    return np.stack([cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA) for image in images])


def area_weights(side: int, size: float) -> npt.NDArray[np.float32]:
    """Return how much each old row has of each new one, float32 [new, old], rows of sum 1: ``shrunk`` as a product."""
    new = smaller_side(side, size)
    edges = np.arange(new + 1) * side / new
    old = np.arange(side)
    inside = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
    weights: npt.NDArray[np.float64] = np.clip(inside, 0, None) * new / side
    return weights.astype(np.float32)
