"""Facts are measured on the cell's own pixels, mean what they say, and do not depend on the black around it."""

from __future__ import annotations

import io
from dataclasses import asdict

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.mutations import mutated, put_together, take_apart
from validation.images.decode import RGB, BadImage, Decoded, decode
from validation.images.facts import ImageFacts
from validation.images.limits import SafeLimits
from validation.images.measure import inspect, measure

LIMITS = SafeLimits(4_096)


def facts(rgb: RGB) -> ImageFacts:
    return measure(Decoded(np.ascontiguousarray(rgb), "PNG", "RGB"), size=1)


def encoded(rgb: RGB, form: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, form, **options)
    return out.getvalue()


def disc(side: int = 100, radius: int = 40, *, colour: tuple[int, int, int] = (200, 140, 150), seed: int = 1) -> RGB:
    """A round cell with grain, in the middle of black."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    grain = np.random.default_rng(seed).integers(-12, 13, (side, side, 1))
    inside = (np.hypot(x, y) <= radius)[..., None]
    return np.where(inside, np.clip(np.array(colour) + grain, 0, 255), 0).astype(np.uint8)


CELL = disc()


def test_the_file_and_its_pixels_are_told() -> None:
    data = encoded(CELL)
    found = inspect(data, LIMITS)
    assert (found.format, found.mode, found.width, found.height, found.bytes) == ("PNG", "RGB", 100, 100, len(data))
    assert inspect(encoded(CELL, "JPEG"), LIMITS).format == "JPEG"


def test_the_same_pixels_are_known_again_however_they_were_stored() -> None:
    small, large = encoded(CELL, compress_level=9), encoded(CELL, compress_level=0)
    assert inspect(small, LIMITS).pixels == inspect(large, LIMITS).pixels
    other = CELL.copy()
    other[0, 0, 0] ^= 1
    wide = CELL[:50]
    assert len({facts(image).pixels for image in (CELL, other, wide, wide.reshape(100, 50, 3))}) == 4


def test_area_and_share_are_the_cells() -> None:
    found = facts(CELL)
    assert found.cell_pixels == pytest.approx(np.pi * 40**2, rel=0.02)
    assert found.cell_share == pytest.approx(found.cell_pixels / 100**2, abs=1e-4)


def test_more_black_around_it_changes_nothing_about_the_cell() -> None:
    tight, loose = asdict(facts(CELL)), asdict(facts(np.pad(CELL, ((30, 0), (5, 70), (0, 0)))))
    for name in ("cell_pixels", "brightness", "contrast", "focus", "hue", "saturation", "objects", "fingerprint"):
        assert loose[name] == tight[name], name
    assert loose["cell_share"] < tight["cell_share"]


def test_ringing_of_jpeg_near_the_cell_is_no_cell() -> None:
    exact, lossy = facts(CELL), inspect(encoded(CELL, "JPEG", quality=75), LIMITS)
    assert lossy.cell_pixels == pytest.approx(exact.cell_pixels, rel=0.03)
    assert lossy.objects == 1
    assert lossy.brightness == pytest.approx(exact.brightness, abs=2)


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_one_bright_channel_is_enough_to_be_a_cell(channel: int) -> None:
    only = np.zeros((20, 20, 3), np.uint8)
    only[5:10, 5:10, channel] = 33
    assert facts(only).cell_pixels == 25
    only[5:10, 5:10, channel] = 32
    assert facts(only).cell_pixels == 0


def test_brightness_is_the_cells_mean() -> None:
    assert facts(CELL).brightness == pytest.approx(CELL[CELL.max(2) > 0].mean(), abs=0.01)


@pytest.mark.parametrize(
    ("colour", "hue", "saturation"),
    [((200, 50, 50), 0, 0.75), ((50, 200, 50), 120, 0.75), ((50, 50, 200), 240, 0.75), ((200, 50, 200), 300, 0.75)],
)
def test_hue_and_saturation_are_those_of_the_colour(
    colour: tuple[int, int, int], hue: float, saturation: float
) -> None:
    found = facts(disc(colour=colour))
    assert (found.hue - hue + 180) % 360 - 180 == pytest.approx(0, abs=1)
    assert found.saturation == pytest.approx(saturation, abs=0.03)


def test_hue_does_not_jump_at_red() -> None:
    hues = [facts(disc(colour=colour)).hue for colour in ((200, 100, 103), (200, 103, 100))]
    assert abs((hues[0] - hues[1] + 180) % 360 - 180) < 5
    assert all(0 <= hue < 360 for hue in hues)


def test_a_grey_cell_has_no_saturation() -> None:
    assert facts(disc(colour=(150, 150, 150))).saturation == 0


def test_blur_lowers_focus_step_by_step() -> None:
    focus = [facts(np.where(CELL > 0, cv2.GaussianBlur(CELL, (0, 0), s), 0)).focus for s in (0.01, 0.7, 1.5)]
    assert focus[0] > focus[1] > focus[2]


def test_the_sharp_outline_is_not_focus() -> None:
    even = np.where(CELL > 0, 150, 0).astype(np.uint8)
    assert facts(even).focus == 0
    assert facts(even).contrast == 0


def test_pieces_are_counted_from_a_size_on() -> None:
    two = np.hstack([CELL, disc(seed=2)])
    assert facts(two).objects == 2
    dust = np.hstack([CELL, np.pad(disc(30, 5), ((0, 70), (0, 0), (0, 0)))])
    assert facts(dust).objects == 1
    ring = CELL.copy()
    ring[40:60, 40:60] = 0
    assert facts(ring).objects == 1


def test_a_cut_runs_along_an_edge_and_a_touch_does_not() -> None:
    tight = CELL[10:90, 10:90]
    assert facts(tight).edge_clipping < 0.3
    for cut in (tight[:40], tight[40:], tight[:, :40], tight[:, 40:]):
        assert facts(cut).edge_clipping > 1
    assert facts(CELL).edge_clipping == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 2), (9, 9)])
@pytest.mark.parametrize("value", [0, 200])
def test_any_size_can_be_measured(shape: tuple[int, int], value: int) -> None:
    found = facts(np.full((*shape, 3), value, np.uint8))
    assert found.cell_pixels == (shape[0] * shape[1] if value else 0)
    assert found.objects == (1 if value else 0)
    assert (found.fingerprint == "") == (value == 0)


def test_what_is_accepted_is_what_pillow_reads() -> None:
    accepted = 0
    for _, harmed in mutated(1_500, seed=3):
        data = harmed
        try:
            pixels = decode(data, LIMITS)
        except BadImage:
            continue
        accepted += 1
        # Pillow also reads what else a file holds, and may fall over it.
        if data.startswith(b"\x89PNG"):
            data = put_together([chunk for chunk in take_apart(data) if chunk[0] in (b"IHDR", b"IDAT", b"IEND")])
        with Image.open(io.BytesIO(data)) as image:
            assert np.array_equal(pixels, np.asarray(image.convert("RGB")))
    assert accepted > 30
