"""Images from outside: whatever the bytes are, they give a picture within the limits or a reason, and nothing else."""

from __future__ import annotations

import io
import pickle
import struct
import zlib

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from validation.images.decode import RGB, BadImage, decode, to_square
from validation.images.limits import REFUSALS
from validation.rules import DataRules

RULES = DataRules()
TINY = DataRules(min_pixels=1, max_aspect=10_000)
REASONS = {None, *REFUSALS}
steady = settings(deadline=None, derandomize=True, max_examples=200)


def noise(width: int, height: int, seed: int = 1) -> RGB:
    return np.random.default_rng(seed).integers(1, 256, (height, width, 3), dtype=np.uint8)


def encoded(pixels: npt.NDArray[np.uint8], form: str = "PNG", mode: str | None = None, **options: object) -> bytes:
    out = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(out, form, **options)
    return out.getvalue()


def png(width: int, height: int, *, bits: int = 8, pixels: bytes | None = None, text: bytes = b"") -> bytes:
    """An RGB PNG by hand: its header may claim any size, whatever the pixels are (None: there are none)."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0))
    said = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(text)) if text else b""
    body = b"" if pixels is None else chunk(b"IDAT", zlib.compress(pixels))
    return b"\x89PNG\r\n\x1a\n" + header + said + body + chunk(b"IEND", b"")


CELL = noise(40, 30)
PNG, JPEG = encoded(CELL), encoded(CELL, "JPEG", quality=95)


def refused(data: bytes, rules: DataRules = RULES) -> str:
    with pytest.raises(BadImage) as caught:
        decode(data, rules)
    assert caught.value.detail
    return caught.value.reason


def test_a_png_gives_its_exact_pixels() -> None:
    assert np.array_equal(decode(PNG, RULES), CELL)
    assert decode(PNG, RULES).dtype == np.uint8


def test_a_jpeg_gives_about_its_pixels() -> None:
    smooth = np.broadcast_to(np.linspace(40, 200, 40, dtype=np.uint8)[None, :, None], (30, 40, 3)).copy()
    again = decode(encoded(smooth, "JPEG", quality=95), RULES)
    assert again.shape == (30, 40, 3)
    assert np.abs(again.astype(int) - smooth).max() <= 6


def several(form: str) -> bytes:
    return encoded(CELL, form, save_all=True, append_images=[Image.fromarray(noise(40, 30, seed)) for seed in (2, 3)])


def rebuilt(packed: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """The PNG of CELL with other packed pixels, and with further chunks before them; all checksums fit."""
    chunks = [(b"IHDR", PNG[16:29]), *more, (b"IDAT", packed), (b"IEND", b"")]
    return PNG[:8] + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


ROWS = b"".join(b"\0" + row.tobytes() for row in CELL)
DEEP = (b"\0" + bytes((0x12, 0xFF)) * 48) * 16
ONE_APNG_FRAME = (b"acTL", struct.pack(">II", 1, 0))
TWO_APNG_FRAMES = (b"acTL", struct.pack(">II", 2, 0))

# Every reason, with images that have it and near misses that do not.
REFUSED: list[tuple[str, bytes, bytes]] = [
    ("not an image", b"", PNG),
    ("not an image", b"key,label\nC1,Parasitized\n", PNG),
    ("not an image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n", PNG),
    ("not an image", PNG[1:], PNG),
    ("not an image", b"GIF89a" + bytes(100), JPEG),
    ("not an image", b"BM and other words", JPEG),
    ("not an image", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", PNG),
    ("wrong format", b"\0\0\0\x18ftypheic" + bytes(100), JPEG),
    ("wrong format", encoded(CELL, "GIF"), PNG),
    ("wrong format", encoded(CELL, "BMP"), PNG),
    ("wrong format", encoded(CELL, "TIFF"), PNG),
    ("wrong format", encoded(CELL, "WEBP"), JPEG),
    ("wrong format", encoded(CELL, "JPEG2000"), JPEG),
    ("wrong format", encoded(CELL, "PPM"), PNG),
    ("truncated", PNG[:8], PNG),
    ("truncated", PNG[:33], PNG),
    ("truncated", PNG[: len(PNG) // 2], PNG),
    ("truncated", PNG[:-12], PNG + b"and more"),  # what follows the end mark does no harm
    ("truncated", PNG[:-1], PNG),
    ("truncated", png(40, 30), png(40, 30, pixels=ROWS)),
    ("truncated", rebuilt(zlib.compress(ROWS[:-1])), rebuilt(zlib.compress(ROWS))),
    ("truncated", rebuilt(zlib.compress(ROWS)[:-20]), rebuilt(zlib.compress(ROWS + b"too long"))),
    ("truncated", JPEG[:20], JPEG),
    ("truncated", JPEG[: len(JPEG) // 2], JPEG),
    ("truncated", JPEG[:-2], JPEG + bytes(9)),
    ("damaged image", PNG[:20] + b"!" + PNG[21:], PNG),
    ("damaged image", PNG[:200] + bytes(100) + PNG[300:], PNG),
    ("damaged image", rebuilt(zlib.compress(ROWS)[:-1] + b"!"), rebuilt(zlib.compress(ROWS))),
    ("damaged image", rebuilt(zlib.compress(b"\7" + ROWS[1:])), rebuilt(zlib.compress(b"\1" + ROWS[1:]))),
    ("damaged image", rebuilt(zlib.compress(ROWS), (b"ABCD", b"")), rebuilt(zlib.compress(ROWS), (b"abCD", b""))),
    ("damaged image", JPEG[:3] + bytes(60) + JPEG[-2:], JPEG),
    ("16-bit", png(16, 16, bits=16, pixels=DEEP), png(16, 16, pixels=(b"\0" + b"\x12" * 48) * 16)),
    ("16-bit", encoded(np.full((30, 40), 40_000, np.uint16)), PNG),
    ("alpha", encoded(CELL, mode="RGBA"), PNG),
    ("alpha", encoded(CELL, mode="LA"), PNG),
    ("alpha", rebuilt(zlib.compress(ROWS), (b"tRNS", bytes(6))), rebuilt(zlib.compress(ROWS), (b"bKGD", bytes(6)))),
    ("wrong mode", encoded(CELL, mode="L"), PNG),
    ("wrong mode", encoded(CELL, mode="P"), PNG),
    ("wrong mode", encoded(CELL, mode="1"), PNG),
    ("wrong mode", encoded(CELL, "JPEG", mode="L"), JPEG),
    ("wrong mode", encoded(CELL, "JPEG", mode="CMYK"), JPEG),
    ("animated", several("PNG"), PNG),
    ("animated", rebuilt(zlib.compress(ROWS), TWO_APNG_FRAMES), rebuilt(zlib.compress(ROWS), ONE_APNG_FRAME)),
    ("animated", several("GIF"), PNG),
    ("animated", several("TIFF"), PNG),
    ("animated", several("MPO"), JPEG),
    ("too small", png(15, 16), png(16, 16, pixels=bytes(49 * 16))),
    ("too large", png(4_097, 4_000), png(16, 16, pixels=bytes(49 * 16))),
    ("odd aspect", png(161, 40), encoded(noise(160, 40))),
]


@pytest.mark.parametrize(("reason", "data", "near_miss"), REFUSED, ids=[f"{i}-{r[0]}" for i, r in enumerate(REFUSED)])
def test_each_reason_has_its_images_and_near_misses(reason: str, data: bytes, near_miss: bytes) -> None:
    assert refused(data) == reason
    assert decode(near_miss, RULES).dtype == np.uint8


def test_every_reason_is_in_the_table() -> None:
    assert {reason for reason, _, _ in REFUSED} == set(REFUSALS)


def test_a_comment_that_would_unpack_to_megabytes_never_is() -> None:
    bomb = png(40, 30, text=bytes(50_000_000), pixels=ROWS)
    assert len(bomb) < 100_000
    assert np.array_equal(decode(bomb, RULES), CELL)


@pytest.mark.parametrize("interlaced", [False, True])
def test_what_opencv_decodes_is_what_pillow_decodes(interlaced: bool) -> None:
    for seed, (width, height) in enumerate([(16, 16), (17, 31), (64, 50), (150, 163)]):
        for pixels in (noise(width, height, seed), cv2.GaussianBlur(noise(width, height, seed), (9, 9), 0)):
            data = encoded(pixels.astype(np.uint8), interlace=interlaced)
            assert np.array_equal(decode(data, RULES), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("side", [5_000, 10_000, 50_000, 2**31 - 1])
def test_a_huge_declared_size_is_refused_before_any_pixel_is_decoded(side: int) -> None:
    # There are no pixels at all: decoding them would fail with "damaged image".
    assert refused(png(side, side)) == "too large"
    assert refused(png(side // 2, side)) == "too large"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_huge_declared_size_is_refused_where_pillow_only_warns() -> None:
    assert refused(png(10_000, 10_000)) == "too large"


@pytest.mark.parametrize(
    ("width", "height", "reason"),
    [
        (16, 16, None),
        (15, 16, "too small"),
        (16, 15, "too small"),
        (1, 1, "too small"),
        (4_096, 1_024, None),
        (1_024, 4_096, None),
        (4_097, 1_100, "too large"),
        (1_100, 4_097, "too large"),
        (64, 16, None),
        (16, 64, None),
        (65, 16, "odd aspect"),
        (16, 65, "odd aspect"),
    ],
)
def test_limits_are_inclusive(width: int, height: int, reason: str | None) -> None:
    data = encoded(np.full((height, width, 3), 9, np.uint8))
    if reason is None:
        assert decode(data, RULES).shape == (height, width, 3)
    else:
        assert refused(data) == reason
        with pytest.raises(BadImage, match=f"{width} x {height} pixels"):
            decode(data, RULES)


def reason_of(data: bytes) -> str | None:
    """Why ``data`` is refused, or None when it gives a picture within the limits; anything else fails the test."""
    try:
        pixels = decode(data, RULES)
    except BadImage as bad:
        return bad.reason
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert all(RULES.min_pixels <= side <= RULES.max_pixels for side in pixels.shape[:2])
    return None


@steady
@given(st.binary(max_size=300), st.sampled_from([b"", PNG[:8], PNG[:33], JPEG[:2], JPEG[:20], JPEG[:160]]))
def test_arbitrary_bytes_cost_an_image_and_never_a_night(data: bytes, start: bytes) -> None:
    assert reason_of(start + data) in REASONS


@steady
@given(
    st.sampled_from([PNG, JPEG]),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
    st.integers(0, 400) | st.none(),
)
def test_a_damaged_image_costs_itself_alone(whole: bytes, changes: list[tuple[int, int]], cut: int | None) -> None:
    data = bytearray(whole)
    for place, value in changes:
        data[place] = value
    assert reason_of(bytes(data[:cut])) in REASONS


def test_a_reason_survives_pickling() -> None:
    again = pickle.loads(pickle.dumps(BadImage("too small", "9 x 9 pixels")))
    assert (again.reason, again.detail) == ("too small", "9 x 9 pixels")


# --- the square --------------------------------------------------------------------------------------------------


@steady
@given(st.integers(1, 90), st.integers(0, 2**32))
def test_a_square_of_the_right_side_keeps_its_exact_pixels(side: int, seed: int) -> None:
    image = noise(side, side, seed)
    assert np.array_equal(to_square(image, side), image)


@steady
@given(st.integers(1, 60), st.integers(1, 60))
def test_an_image_is_centred_on_black(width: int, height: int) -> None:
    image, edge = noise(width, height), max(width, height)
    square = to_square(image, edge)
    rows, columns = np.flatnonzero(square.any(axis=(1, 2))), np.flatnonzero(square.any(axis=(0, 2)))
    above, below = rows[0], edge - 1 - rows[-1]
    left, right = columns[0], edge - 1 - columns[-1]
    assert 0 <= below - above <= 1
    assert 0 <= right - left <= 1
    assert np.array_equal(square[above : edge - below, left : edge - right], image)


@pytest.mark.parametrize("side", [32, 64, 224])
@pytest.mark.parametrize(("width", "height"), [(100, 50), (50, 100), (120, 90), (46, 394)])
def test_proportions_are_kept(width: int, height: int, side: int) -> None:
    square = to_square(np.full((height, width, 3), 200, np.uint8), side)
    assert square.shape == (side, side, 3)
    seen = square[:, :, 0] >= 100  # an edge that falls between two pixels is half as bright
    edge = max(width, height)
    assert seen.any(axis=0).sum() == pytest.approx(width * side / edge, abs=1)
    assert seen.any(axis=1).sum() == pytest.approx(height * side / edge, abs=1)
    assert square.max() == 200


def test_a_large_cell_is_averaged_not_thinned_out() -> None:
    # Every eighth column is white: picking pixels would give stripes or nothing, averaging gives an even grey.
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::8] = 240
    inner = to_square(stripes, 32)[4:-4, 4:-4]
    assert inner.min() >= 25
    assert inner.max() <= 35


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 4_096), (4_096, 1), (1, 2), (3, 1)])
def test_an_image_one_pixel_wide_is_possible(width: int, height: int) -> None:
    image = decode(encoded(np.full((height, width, 3), 255, np.uint8)), TINY)
    square = to_square(image, 64)
    assert square.shape == (64, 64, 3)
    assert square.dtype == np.uint8
    assert square.any()
