"""Images harmed at random, from a seed: bits flipped, ends cut, chunks swapped, formats spliced, checksums mended."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, PngImagePlugin

Chunks = list[tuple[bytes, bytes]]


def whole_images() -> dict[str, bytes]:
    """Return small images of many kinds and formats, all of them sound."""
    rng = np.random.default_rng(1)
    pixels = np.zeros((24, 20, 3), np.uint8)
    pixels[3:21, 2:18] = rng.integers(60, 240, (18, 16, 3))
    cell = Image.fromarray(pixels)
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "a cell " * 20, zip=True)
    deep = Image.fromarray(rng.integers(0, 65_535, (24, 20), dtype=np.uint16))
    kinds: dict[str, tuple[Image.Image, str, dict[str, object]]] = {
        "png": (cell, "PNG", {}),
        "png with text": (cell, "PNG", {"pnginfo": text}),
        "png interlaced": (cell, "PNG", {"interlace": True}),
        "png palette": (cell.convert("P"), "PNG", {}),
        "png alpha": (cell.convert("RGBA"), "PNG", {}),
        "png 16-bit": (deep, "PNG", {}),
        "png animated": (cell, "PNG", {"save_all": True, "append_images": [cell.rotate(90)]}),
        "jpeg": (cell, "JPEG", {"quality": 90}),
        "jpeg progressive": (cell, "JPEG", {"progressive": True}),
        "jpeg cmyk": (cell.convert("CMYK"), "JPEG", {}),
        "gif": (cell, "GIF", {}),
        "bmp": (cell, "BMP", {}),
        "tiff": (cell, "TIFF", {}),
        "webp": (cell, "WEBP", {}),
    }
    made = {}
    for name, (image, form, options) in kinds.items():
        out = io.BytesIO()
        image.save(out, form, **options)
        made[name] = out.getvalue()
    return made


def take_apart(data: bytes) -> Chunks:
    """Return the chunks (name, content) of a PNG."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return chunks


def put_together(chunks: Chunks) -> bytes:
    """Return a PNG whose checksums all fit."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )


def _flip_bits(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 8, 40))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    return data[: rng.randrange(len(data))]


def _lose_a_piece(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.randrange(1, 60) :]


def _repeat_a_piece(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start : start + rng.randrange(1, 60)] * rng.randrange(2, 5) + data[start:]


def _splice(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    other = rng.choice(others)
    return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]


def _zero_a_piece(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    start, size = rng.randrange(len(data)), rng.randrange(1, 80)
    return data[:start] + rng.choice((b"\0", b"\xff")) * size + data[start + size :]


def _shuffle_chunks(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    chunks = take_apart(data)
    first, second = rng.randrange(len(chunks)), rng.randrange(len(chunks))
    chunks[first], chunks[second] = chunks[second], chunks[first]
    if rng.random() < 0.4:
        chunks.insert(rng.randrange(len(chunks)), rng.choice(take_apart(rng.choice(others)) or chunks))
    if rng.random() < 0.2:
        chunks.pop(rng.randrange(len(chunks)))
    return put_together(chunks)


def _mended(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Harm within a chunk whose checksum is mended: what only the decoder can notice."""
    chunks = take_apart(data)
    place = rng.randrange(len(chunks))
    name, content = chunks[place]
    chunks[place] = (name, _flip_bits(content, rng, others) if content else b"x")
    return put_together(chunks)


def _other_rows(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Pixels that unpack well and are too many, too few, or filtered by no filter there is."""
    rows = bytearray(rng.randbytes(rng.choice((0, 1, 100, 24 * 61 - 1, 24 * 61, 24 * 61 + 9))))
    return put_together([(n, zlib.compress(bytes(rows)) if n == b"IDAT" else c) for n, c in take_apart(data)])


_ANY = (_flip_bits, _cut, _lose_a_piece, _repeat_a_piece, _splice, _zero_a_piece)
_PNG = (*_ANY, _shuffle_chunks, _mended, _mended, _other_rows)


def mutated(count: int, *, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield ``count`` harmed images, each with the kind it was made of."""
    rng = random.Random(seed)
    kinds = whole_images()
    others = list(kinds.values())
    for _ in range(count):
        kind = rng.choice(list(kinds))
        harms: tuple[Callable[[bytes, random.Random, list[bytes]], bytes], ...]
        data = kinds[kind]
        for _ in range(rng.choice((1, 1, 2))):
            harms = _PNG if data.startswith(b"\x89PNG") and len(data) > 60 and take_apart(data) else _ANY
            data = rng.choice(harms)(data, rng, others) if data else data
        yield kind, data
