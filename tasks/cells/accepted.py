"""Decode an accepted cell again: one set of limits for packing, scoring, the check before promotion and reports."""

from __future__ import annotations

from tasks.context import Context
from tasks.snapshots.objects import read_object
from validation.errors import RetrainError
from validation.images.decode import RGB, BadImage, decode, to_square
from validation.images.limits import SafeLimits


def decode_accepted(data: bytes, max_pixels: int) -> RGB:
    """Decode a cell that validation accepted, as RGB: within the decoder's safe limits, whatever the data rules.

    Raises:
        BadImage: when it cannot be decoded.
    """
    return decode(data, SafeLimits(max_pixels))


def square_of(context: Context, key: str, sha256: str, side: int) -> RGB:
    """Return an accepted cell as models see it: padded and resized to uint8 [side, side, 3].

    Raises:
        RetrainError: when it is gone (ObjectMissing), or cannot be decoded any more.
    """
    data = read_object(context, key, sha256)
    try:
        return to_square(decode_accepted(data, context.settings.data.max_pixels), side)
    except BadImage as bad:
        raise RetrainError(
            f"the accepted cell {key!r} can no longer be decoded: {bad.reason}, {bad.detail}",
            "restore data.max_pixels and the locked libraries, or run a night with the current ones",
        ) from bad
