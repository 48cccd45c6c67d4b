"""Measures one image (validation.images.facts.ImageFacts), on the cell's own pixels.

Cells are cut out on black, which misleads the usual detectors (dark, low information, duplicates): every measurement
ignores the pixels outside the mask.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from validation.images.decode import RGB, Decoded, read
from validation.images.facts import ImageFacts
from validation.images.fingerprints import fingerprint
from validation.images.limits import Limits

# A pixel belongs to the cell when its brightest channel is above this. Of the 87 million cell pixels of 6,890 real
# cells 5 are below; of the black around a cell, JPEG of quality 75 lifts 0.5% above it.
BLACK = 32
# The outline is sharper than anything inside the cell: focus is measured this far inside, in px.
_RIM = 4
# A further piece of the mask counts as a cell when it has this share of the largest one's area. The largest second
# piece of 6,890 real cells has 0.064.
_SIZEABLE = 0.15

# OpenCV's stubs do not state the number type.
_Grey = npt.NDArray[Any]


def inspect(data: bytes, limits: Limits) -> ImageFacts:
    """Decode an image and measure it.

    Raises:
        BadImage: when it cannot be decoded, or may not be (validation.images.decode.read).
    """
    return measure(read(data, limits), size=len(data))


def measure(image: Decoded, *, size: int) -> ImageFacts:
    """Measure a decoded image whose file has ``size`` bytes. Never fails: without a cell, facts are zero."""
    rgb = np.ascontiguousarray(image.rgb)
    height, width, _ = rgb.shape
    mask = cell_mask(rgb)
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    area = int(cv2.countNonZero(mask))
    inside = cv2.erode(mask, _DISC, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    contrast, focus = _texture(grey, inside if cv2.countNonZero(inside) else mask)
    brightness, hue, saturation = _colour(rgb, mask)
    return ImageFacts(
        format=image.format,
        mode=image.mode,
        width=width,
        height=height,
        bytes=size,
        pixels=_pixels_digest(rgb),
        cell_share=round(area / (width * height), 4),
        cell_pixels=area,
        aspect=round(max(width, height) / min(width, height), 4),
        objects=_objects(mask) if area else 0,
        edge_clipping=round(_edge_clipping(mask, area), 4),
        brightness=round(brightness, 2),
        contrast=round(contrast, 3),
        focus=round(focus, 4),
        hue=round(hue, 2) % 360,
        saturation=round(saturation, 4),
        fingerprint=fingerprint(grey, mask) if area else "",
    )


_DISC = cv2.getStructuringElement(cv2.MORPH_RECT, (2 * _RIM + 1, 2 * _RIM + 1))


def cell_mask(rgb: RGB) -> _Grey:
    """Return the cell's mask as uint8 [height, width]: 255 on the cell, 0 on the black around it."""
    return cv2.bitwise_not(cv2.inRange(rgb, (0, 0, 0), (BLACK, BLACK, BLACK)))


def _pixels_digest(rgb: RGB) -> str:
    height, width, _ = rgb.shape
    whole = hashlib.sha256(f"{width}x{height}:".encode())
    whole.update(rgb.data)
    return whole.hexdigest()


def _colour(rgb: RGB, mask: _Grey) -> tuple[float, float, float]:
    """Return brightness, hue in degrees and saturation of the mean colour.

    The mean colour's hue is the mean hue weighted by chroma, so that grey pixels do not affect it, and 0 = 360 is no
    special case.
    """
    red, green, blue, _ = cv2.mean(rgb, mask)
    high, low = max(red, green, blue), min(red, green, blue)
    hue = math.degrees(math.atan2(math.sqrt(3) * (green - blue), 2 * red - green - blue)) % 360
    return (red + green + blue) / 3, hue if high > low else 0.0, (high - low) / high if high else 0.0


def _texture(grey: _Grey, inside: _Grey) -> tuple[float, float]:
    """Return contrast and focus. Focus: Pech-Pacheco et al. 2000, variance of the Laplacian."""
    contrast = cv2.meanStdDev(grey, mask=inside)[1].item()
    deviation = cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_16S, ksize=1), mask=inside)[1].item()
    return contrast, math.log10(1 + deviation**2)


def _objects(mask: _Grey) -> int:
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if len(outlines) == 1:
        return 1
    areas = [cv2.contourArea(outline) for outline in outlines]
    least = _SIZEABLE * max(areas)
    return max(1, sum(area > least for area in areas))


def _edge_clipping(mask: _Grey, area: int) -> float:
    """Cell pixels on the fullest side of the picture, over the square root of the cell's area."""
    if not area:
        return 0.0
    sides = (mask[0], mask[-1], mask[:, 0], mask[:, -1])
    return float(max(np.count_nonzero(side) for side in sides)) / math.sqrt(area)
