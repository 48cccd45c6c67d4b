"""One cell image: decoded safely, measured on the cell's own pixels, and made the square that models see.

``to_square`` is the only way from an image to a model's input, for packs and for predictions alike.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from validation.digest import sha256
from validation.rules import DataRules

RGB = npt.NDArray[np.uint8]

# Decoders that were asked for; Pillow knows dozens more, each with bugs of its own.
FORMATS = ("PNG", "JPEG")


class BadImage(Exception):
    """Why an image is left out: a reason code for tables, and a detail for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What was measured of one image. Shares are 0-1; brightness is the mean grey value, 0-255, of the cell."""

    width: int
    height: int
    pixels: str
    cell_share: float
    brightness: float


def decode(data: bytes, rules: DataRules) -> RGB:
    """Return an image as uint8 [height, width, 3].

    Raises:
        BadImage: not an image, truncated, of a mode other than RGB, or outside the limits. Limits are checked on
            the header, before any pixel is decoded.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if min(width, height) < rules.min_pixels:
                raise BadImage("too small", f"{width} x {height} pixels, at least {rules.min_pixels} a side expected")
            if max(width, height) > rules.max_pixels:
                raise BadImage("too large", f"{width} x {height} pixels, at most {rules.max_pixels} a side expected")
            if image.mode != "RGB":
                raise BadImage("wrong mode", f"mode {image.mode}, RGB expected")
            return np.asarray(image)
    except UnidentifiedImageError:
        raise BadImage("not an image", f"{len(data)} bytes that are neither PNG nor JPEG") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage("too large", str(error)[:200]) from None
    except BadImage:
        raise
    except Exception as error:  # any decoder error: hostile bytes must cost the image, not the night
        raise BadImage("damaged image", f"{type(error).__name__}: {error}"[:200]) from None


def measure(rgb: RGB) -> ImageFacts:
    """Measure an image on the cell's own pixels: black ones are background.

    Raises:
        BadImage: when there is no cell, that is, nothing but black.
    """
    height, width, _ = rgb.shape
    cell = rgb.max(axis=2) > 0
    if not cell.any():
        raise BadImage("no cell", "all pixels are black")
    shape = f"{width}x{height}:".encode()
    return ImageFacts(
        width=width,
        height=height,
        pixels=sha256(shape + rgb.tobytes()),
        cell_share=round(float(cell.mean()), 4),
        brightness=round(float(rgb[cell].mean()), 2),
    )


def to_square(rgb: RGB, side: int) -> RGB:
    """Pad an image with black to a centred square and resize it to uint8 [side, side, 3].

    The square keeps a cell's proportions; resizing to one size takes away what its microscope added.
    """
    height, width, _ = rgb.shape
    edge = max(height, width)
    square = np.zeros((edge, edge, 3), np.uint8)
    top, left = (edge - height) // 2, (edge - width) // 2
    square[top : top + height, left : left + width] = rgb
    # Pillow's bilinear filter widens with the reduction, so it does not alias.
    return np.asarray(Image.fromarray(square).resize((side, side), Image.Resampling.BILINEAR))
