"""Heat maps of what a model looked at: parts of a cell are covered, one at a time, and the change of its score drawn.

Occlusion (Zeiler & Fergus 2014, arXiv:1311.2901, section 4.2) needs nothing but the model file: no framework, no
gradients.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from infra.scoring.model_file import ModelFile
from validation.images.decode import RGB

Floats = npt.NDArray[np.float64]

# A parasite is about a fifth of a cell across; a patch covers it whole, and steps of half a patch find it.
PATCH, STEP = 0.25, 0.125
SUPPORTS, OPPOSES = (213, 94, 0), (0, 114, 178)  # towards Parasitized, towards Uninfected (Okabe-Ito)
# A change of the score by this much (in logits, 1 is a factor of 2.7 in odds) is drawn at full strength.
FULL = 3.0


def occlusion(model: ModelFile, image: RGB, fold: int) -> Floats:
    """Return how much each place speaks for Parasitized: the logit of the whole minus covered, float [steps, steps].

    ``image`` uint8 [side, side, 3]. ``fold`` is its patient's: the member that has not seen it is asked, where the file
    has members. The cover has the median colour of the cell's own pixels, so that it looks like cytoplasm and not like
    a hole.
    """
    size, starts = _covers(image.shape[0])
    cell = image.max(axis=2) > 0
    colour = np.median(image[cell], axis=0).astype(np.uint8) if cell.any() else np.zeros(3, np.uint8)
    covered = np.repeat(image[np.newaxis], len(starts) ** 2 + 1, axis=0)
    for index, (top, left) in enumerate((top, left) for top in starts for left in starts):
        part = covered[index, top : top + size, left : left + size]
        part[cell[top : top + size, left : left + size]] = colour
    found = model.score_by_fold(covered, np.full(len(covered), fold)) if model.folds else model.score(covered)
    scores = np.clip(found.astype(np.float64), 1e-6, 1 - 1e-6)
    logits = np.log(scores / (1 - scores))
    effect: Floats = (logits[-1] - logits[:-1]).reshape(len(starts), len(starts))
    return effect


def _covers(side: int) -> tuple[int, list[int]]:
    """Return the side of a cover, and where covers start along a side of the image."""
    size, step = max(1, round(side * PATCH)), max(1, round(side * STEP))
    return size, list(range(0, side - size + 1, step))


def draw_heat(image: RGB, effect: Floats, size: int) -> RGB:
    """Return the cell beside its grey copy with the heat on top, uint8 [size, 2 size + gap, 3].

    A box marks the place that mattered most, for readers who do not see the colours.
    """
    cell = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
    heat = Image.fromarray(_spread(effect, image.shape[0]).astype(np.float32), mode="F")
    # Down to about one point a step and up again, which smooths the edges of the covers.
    points = round(1.5 / STEP)
    heat = heat.resize((points, points), Image.Resampling.BOX)
    strength = np.asarray(heat.resize((size, size), Image.Resampling.BICUBIC)) / FULL
    grey = np.repeat(cell.mean(axis=2, keepdims=True), 3, axis=2)
    colour = np.where(strength[..., np.newaxis] > 0, SUPPORTS, OPPOSES)
    blend = np.clip(np.abs(strength), 0, 0.75)[..., np.newaxis] * (cell.max(axis=2, keepdims=True) > 0)
    overlay = Image.fromarray((grey * (1 - blend) + colour * blend).astype(np.uint8))
    if np.abs(effect).max() > 0.05:
        _box(overlay, effect, image.shape[0], size)
    gap = np.zeros((size, max(2, size // 24), 3), np.uint8)
    return np.concatenate([cell, gap, np.asarray(overlay)], axis=1)


def _spread(effect: Floats, side: int) -> Floats:
    """Return the mean effect of all covers over a pixel, float [side, side]."""
    total, count = np.zeros((side, side)), np.zeros((side, side))
    size, starts = _covers(side)
    for row, top in enumerate(starts):
        for column, left in enumerate(starts):
            total[top : top + size, left : left + size] += effect[row, column]
            count[top : top + size, left : left + size] += 1
    spread: Floats = total / np.maximum(count, 1)
    return spread


def _box(overlay: Image.Image, effect: Floats, side: int, size: int) -> None:
    row, column = np.unravel_index(int(np.abs(effect).argmax()), effect.shape)
    (_, starts), scale = _covers(side), size / side
    left, top, edge = starts[int(column)] * scale, starts[int(row)] * scale, side * PATCH * scale
    corners = (left, top, left + edge, top + edge)
    ImageDraw.Draw(overlay).rectangle(corners, outline=(0, 0, 0), width=3)
    ImageDraw.Draw(overlay).rectangle(corners, outline=(255, 255, 255), width=1)
