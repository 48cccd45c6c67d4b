"""Images from outside: whatever the bytes are, they give a picture within the limits or a reason, and nothing else."""

from __future__ import annotations

import io
import pickle
import struct
import zlib

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from validation.images import RGB, BadImage, decode, measure, to_square
from validation.rules import DataRules

RULES = DataRules()
TINY = DataRules(min_pixels=1)
REASONS = {None, "not an image", "damaged image", "too small", "too large", "wrong mode"}
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


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encoded(CELL, mode="L"), "wrong mode"),
        (encoded(CELL, "JPEG", mode="L"), "wrong mode"),
        (encoded(CELL, mode="RGBA"), "wrong mode"),
        (encoded(CELL, mode="LA"), "wrong mode"),
        (encoded(CELL, mode="P"), "wrong mode"),
        (encoded(CELL, mode="1"), "wrong mode"),
        (encoded(CELL, "JPEG", mode="CMYK"), "wrong mode"),
        (encoded(CELL, "GIF"), "not an image"),
        (encoded(CELL, "BMP"), "not an image"),
        (encoded(CELL, "TIFF"), "not an image"),
        (encoded(CELL, "WEBP"), "not an image"),
        (b"key,label\nC1,Parasitized\n", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n", "not an image"),
        (b"", "not an image"),
        (PNG[:8], "not an image"),
        (PNG[: len(PNG) // 2], "damaged image"),
        (JPEG[: len(JPEG) // 2], "damaged image"),
        (PNG[:200] + bytes(100) + PNG[300:], "damaged image"),
        (png(40, 30), "damaged image"),
        (png(40, 30, text=bytes(50_000_000)), "damaged image"),  # 50 kB that would unpack to 50 MB of comment
    ],
)
def test_what_is_no_usable_image_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    assert refused(data) == reason


def test_sixteen_bits_of_grey_are_refused_and_of_colour_are_read_as_eight() -> None:
    out = io.BytesIO()
    Image.fromarray(np.full((30, 40), 40_000, np.uint16)).save(out, "PNG")
    assert refused(out.getvalue()) == "wrong mode"
    deep = png(16, 16, bits=16, pixels=(b"\0" + bytes((0x12, 0xFF)) * 48) * 16)
    assert (decode(deep, RULES) == 0x12).all()


def test_an_animation_is_read_as_its_first_picture() -> None:
    later = [Image.fromarray(noise(40, 30, seed)) for seed in (2, 3)]
    moving = encoded(CELL, save_all=True, append_images=later)
    assert b"acTL" in moving
    assert np.array_equal(decode(moving, RULES), CELL)


@pytest.mark.parametrize("side", [5_000, 10_000, 50_000, 2**31 - 1])
def test_a_huge_declared_size_is_refused_before_any_pixel_is_decoded(side: int) -> None:
    # There are no pixels at all: whoever tried to decode them would find the file damaged.
    assert refused(png(side, side)) == "too large"
    assert refused(png(64, side)) == "too large"


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
        (4_096, 16, None),
        (16, 4_096, None),
        (4_097, 16, "too large"),
        (16, 4_097, "too large"),
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


# --- measuring ---------------------------------------------------------------------------------------------------


def on_black(cell: RGB, width: int, height: int) -> RGB:
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[: cell.shape[0], : cell.shape[1]] = cell
    return canvas


def test_an_image_that_is_all_black_has_no_cell() -> None:
    with pytest.raises(BadImage, match="black") as caught:
        measure(decode(encoded(np.zeros((30, 40, 3), np.uint8)), RULES))
    assert caught.value.reason == "no cell"


def test_a_cell_is_as_bright_on_much_black_as_on_little() -> None:
    tight, loose = measure(on_black(CELL, 40, 40)), measure(on_black(CELL, 200, 100))
    assert tight.brightness == loose.brightness == pytest.approx(CELL.mean(), abs=0.01)
    assert tight.cell_share == pytest.approx(30 / 40, abs=1e-4)
    assert loose.cell_share == pytest.approx(40 * 30 / 20_000, abs=1e-4)
    assert (loose.width, loose.height) == (200, 100)


def test_one_channel_is_enough_to_be_a_cell() -> None:
    red = np.zeros((20, 20, 3), np.uint8)
    red[3, 4, 0] = 1
    assert measure(red).cell_share == pytest.approx(1 / 400, abs=1e-4)


def test_the_same_pixels_are_known_again_however_they_were_stored() -> None:
    small, large = encoded(CELL, compress_level=9), encoded(CELL, compress_level=0)
    assert small != large
    assert measure(decode(small, RULES)).pixels == measure(decode(large, RULES)).pixels


def test_other_pixels_or_another_shape_are_another_image() -> None:
    other = CELL.copy()
    other[0, 0, 0] ^= 1
    names = {measure(image).pixels for image in (CELL, other, CELL.reshape(40, 30, 3), CELL.transpose(1, 0, 2))}
    assert len(names) == 4


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
