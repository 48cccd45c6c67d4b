"""Decodes one cell image safely, and turns it into the square that models see.

``to_square`` is the only way from an image to a model's input, for packs and for predictions.
"""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from validation.images.limits import BadImage, Limits, check_size
from validation.images.png import SIGNATURE, decode_png

__all__ = ["RGB", "BadImage", "Decoded", "decode", "placeholder", "read", "to_square"]

RGB = npt.NDArray[np.uint8]

_JPEG = b"\xff\xd8\xff"
# Recognised by their headers to be named, never decoded. Pillow has dozens more, each with its own bugs.
_OTHERS = ("GIF", "BMP", "TIFF", "WEBP", "JPEG2000", "AVIF", "ICO", "PPM")


_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")


def placeholder(data: bytes) -> str:
    """Return what stands in for a file whose content is elsewhere; empty for a file with content."""
    if not data:
        return "an empty file"
    is_pointer = data.startswith(b"version https://git-lfs.github.com/spec/")
    return "a git-lfs pointer; `git lfs pull` fetches the image" if is_pointer else ""


class Decoded(NamedTuple):
    """A decoded image: its pixels uint8 [height, width, 3], and its file's format and mode."""

    rgb: RGB
    format: str
    mode: str


def decode(data: bytes, rules: Limits) -> RGB:
    """Return an image as uint8 [height, width, 3].

    Raises:
        BadImage: see ``read``.
    """
    return read(data, rules).rgb


def read(data: bytes, limits: Limits) -> Decoded:
    """Decode an image: PNG or JPEG, one picture, RGB, 8 bits a channel, no transparency.

    Raises:
        BadImage: with one of ``validation.images.limits.REFUSALS``. Limits are checked on the header, before any pixel
            is decoded.
    """
    if data.startswith(SIGNATURE):
        return Decoded(decode_png(data, limits), "PNG", "RGB")
    if data.startswith(_JPEG):
        return Decoded(_decode_jpeg(data, limits), "JPEG", "RGB")
    raise _other(data)


def _decode_jpeg(data: bytes, limits: Limits) -> RGB:
    # With Pillow: OpenCV silently fills the missing part of a truncated JPEG with grey.
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            check_size(*image.size, limits)
            if image.mode != "RGB":
                raise BadImage("wrong mode", f"mode {image.mode}, RGB expected")
            if getattr(image, "n_frames", 1) > 1:
                raise BadImage("animated", f"{getattr(image, 'n_frames', 1)} pictures (MPO), one expected")
            return np.asarray(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage("too large", str(error)[:200]) from None
    except BadImage:
        raise
    except Exception as error:  # any decoder error: a hostile file must not stop the night
        raise _broken_jpeg(data, error) from None


def _broken_jpeg(data: bytes, error: Exception) -> BadImage:
    ends = data.rstrip(b"\0").endswith(b"\xff\xd9")
    reason = "damaged image" if ends and "truncated" not in str(error) else "truncated"
    if isinstance(error, UnidentifiedImageError):  # its text contains a memory address
        return BadImage(reason, f"{len(data)} bytes: its JPEG header cannot be read")
    return BadImage(reason, f"{type(error).__name__}: {error}"[:200])


def _other(data: bytes) -> BadImage:
    """Return the error for a file that is neither PNG nor JPEG."""
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC:
        return BadImage("wrong format", "HEIC, as phones save photos; PNG or JPEG expected")
    try:
        with Image.open(io.BytesIO(data), formats=_OTHERS) as image:
            if getattr(image, "is_animated", False):
                return BadImage("animated", f"{image.format} with several pictures, one PNG or JPEG expected")
            return BadImage("wrong format", f"{image.format}, PNG or JPEG expected")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return BadImage("wrong format", "a huge image of another format, PNG or JPEG expected")
    except UnidentifiedImageError:
        pass
    except Exception as error:  # a header that misleads Pillow's own reader
        return BadImage("not an image", f"{len(data)} bytes that cannot be read: {type(error).__name__}"[:200])
    return BadImage("not an image", placeholder(data) or f"{len(data)} bytes that are neither PNG nor JPEG")


def to_square(rgb: RGB, side: int) -> RGB:
    """Pad an image with black to a centred square and resize it to uint8 [side, side, 3].

    The square keeps a cell's proportions; one size removes the differences between microscopes.
    """
    height, width, _ = rgb.shape
    edge = max(height, width)
    square = np.zeros((edge, edge, 3), np.uint8)
    top, left = (edge - height) // 2, (edge - width) // 2
    square[top : top + height, left : left + width] = rgb
    # Pillow's bilinear filter widens with the reduction, which avoids aliasing.
    return np.asarray(Image.fromarray(square).resize((side, side), Image.Resampling.BILINEAR))
