"""Checks PNG files chunk by chunk, and gives only header and pixels to OpenCV's decoder.

OpenCV takes two thirds of Pillow's time for a PNG and is stricter (Pillow accepts a missing checksum or end). It never
sees the other parts of a file: profiles, comments that unpack to megabytes, EXIF.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from validation.images.limits import BadImage, Limits, check_size

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER_END = 33  # signature, then IHDR: length, name, 13 bytes, CRC
_END = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGB_ALPHA = 0, 2, 3, 4, 6
_MODES = {_GREY: "grey", _RGB: "RGB", _PALETTE: "palette", _GREY_ALPHA: "grey with alpha", _RGB_ALPHA: "RGBA"}
_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")


class _Header(NamedTuple):
    width: int
    height: int
    bits: int
    colour: int
    compression: int
    filter: int
    interlace: int


def decode_png(data: bytes, limits: Limits) -> npt.NDArray[np.uint8]:
    """Return the pixels of an 8-bit RGB PNG, uint8 [height, width, 3].

    Raises:
        BadImage: truncated, damaged, too small or large, of odd aspect, 16-bit, of another mode, with transparency,
            animated. The header alone decides wherever possible.
    """
    header = _header(data)
    check_size(header.width, header.height, limits)
    _check_mode(header)
    chunks = _pixel_chunks(data)
    pixels: npt.NDArray[np.uint8] | None
    try:
        whole = np.frombuffer(b"".join([data[:_HEADER_END], *chunks, _END]), np.uint8)
        pixels = cv2.imdecode(whole, cv2.IMREAD_COLOR_RGB)  # type: ignore[assignment]
    except (cv2.error, MemoryError) as error:
        raise BadImage("damaged image", f"{type(error).__name__}: {error}"[:200]) from None
    if pixels is None or pixels.shape != (header.height, header.width, 3):
        raise _what_is_wrong(header, b"".join(chunk[8:-4] for chunk in chunks))
    return pixels


def _header(data: bytes) -> _Header:
    if len(data) < _HEADER_END:
        raise BadImage("truncated", f"{len(data)} bytes: it ends within the PNG header")
    if data[8:16] != b"\0\0\0\rIHDR" or zlib.crc32(data[12:29]) != int.from_bytes(data[29:33], "big"):
        raise BadImage("damaged image", "the PNG header does not fit its checksum")
    header = _Header(*struct.unpack(">IIBBBBB", data[16:29]))
    if not (header.width and header.height) or header.colour not in _MODES or header.bits not in (1, 2, 4, 8, 16):
        raise BadImage("damaged image", f"an impossible PNG header: {tuple(header)}")
    return header


def _check_mode(header: _Header) -> None:
    if header.bits == 16:
        raise BadImage("16-bit", f"{_MODES[header.colour]} with 16 bits a channel, RGB with 8 expected")
    if header.colour in (_GREY_ALPHA, _RGB_ALPHA):
        raise BadImage("alpha", f"mode {_MODES[header.colour]}, RGB without transparency expected")
    if header.colour != _RGB:
        raise BadImage("wrong mode", f"mode {_MODES[header.colour]}, RGB expected")
    if header.bits != 8:
        raise BadImage("damaged image", f"an impossible PNG header: {tuple(header)}")


def _pixel_chunks(data: bytes) -> list[bytes]:
    """Check all chunks, and return those with pixels."""
    pixels: list[bytes] = []
    at, end = _HEADER_END, len(data)
    while at + 12 <= end:
        stop = at + 12 + int.from_bytes(data[at : at + 4], "big")
        name = data[at + 4 : at + 8]
        if stop > end:
            break
        if zlib.crc32(data[at + 4 : stop - 4]) != int.from_bytes(data[stop - 4 : stop], "big"):
            raise BadImage("damaged image", f"the chunk at byte {at} does not fit its checksum")
        if name == b"IDAT":
            pixels.append(data[at:stop])
        elif name == b"IEND":
            return pixels
        else:
            _check_chunk(name, data[at + 8 : stop - 4])
        at = stop
    raise BadImage("truncated", f"{end} bytes: the file ends before its PNG end mark")


def _check_chunk(name: bytes, content: bytes) -> None:
    if name == b"tRNS":
        raise BadImage("alpha", "one colour is transparent (tRNS), RGB without transparency expected")
    if name == b"acTL" and int.from_bytes(content[:4], "big") > 1:
        raise BadImage("animated", f"{int.from_bytes(content[:4], 'big')} pictures (APNG), one expected")
    if not name[0] & 0x20 and name not in _CRITICAL:
        raise BadImage("damaged image", f"an unknown critical chunk, {name!r}")


def _what_is_wrong(header: _Header, packed: bytes) -> BadImage:
    """Return why pixels with correct checksums do not decode: they end too early, or are damaged."""
    expected = header.height * (3 * header.width + 1)
    stream = zlib.decompressobj()
    try:
        rows = stream.decompress(packed, expected)
    except zlib.error as error:
        return BadImage("damaged image", f"its pixels cannot be unpacked: {error}"[:200])
    if len(rows) < expected and not header.interlace:
        return BadImage("truncated", f"{len(rows):,} bytes of pixels, {expected:,} expected")
    return BadImage("damaged image", "its pixels cannot be decoded")
