"""Near duplicates: copies of a cell are found, other cells are not, however many there are."""

from __future__ import annotations

import io
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from PIL import Image

from tasks.intake.synthetic_cells import SyntheticPlan, night_cells
from validation.images.decode import RGB, Decoded
from validation.images.fingerprints import near_duplicates
from validation.images.measure import measure

PLAN = SyntheticPlan(patients=12, cells_per_patient=6, scale=0.6)
CELLS = [np.asarray(Image.open(io.BytesIO(cell.png))) for cell in night_cells(1, PLAN)]


def fingerprint(rgb: RGB) -> str:
    return measure(Decoded(np.ascontiguousarray(rgb), "PNG", "RGB"), size=0).fingerprint


PRINTS = [fingerprint(cell) for cell in CELLS]


def as_jpeg(rgb: RGB) -> RGB:
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "JPEG", quality=80)
    return np.asarray(Image.open(out))


def moved(rgb: RGB) -> RGB:
    return np.pad(rgb, ((2, 0), (0, 1), (0, 0)))


COPIES: dict[str, Callable[[RGB], RGB]] = {
    "another format": as_jpeg,
    "darker": lambda rgb: (rgb * 0.9).astype(np.uint8),
    "moved": moved,
    "larger": lambda rgb: np.asarray(cv2.resize(rgb, None, fx=1.1, fy=1.1)),
    "smaller": lambda rgb: np.asarray(cv2.resize(rgb, None, fx=0.8, fy=0.8, interpolation=cv2.INTER_AREA)),
}


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_is_found_and_nothing_else(kind: str) -> None:
    copies = [fingerprint(COPIES[kind](cell)) for cell in CELLS]
    pairs = near_duplicates(PRINTS + copies)
    assert pairs == [(i, len(CELLS) + i) for i in range(len(CELLS))]


@pytest.mark.parametrize("kind", ["turned", "mirrored"])
def test_a_cell_that_was_turned_is_another_one(kind: str) -> None:
    others = [fingerprint(np.rot90(cell) if kind == "turned" else cell[:, ::-1]) for cell in CELLS]
    assert near_duplicates(PRINTS + others) == []


def test_of_three_alike_every_pair_is_named() -> None:
    prints = [*PRINTS, PRINTS[3], PRINTS[3]]
    first, second = len(PRINTS), len(PRINTS) + 1
    assert near_duplicates(prints) == [(3, first), (3, second), (first, second)]


def test_images_without_a_cell_are_not_alike() -> None:
    assert near_duplicates(["", "", PRINTS[0], ""]) == []
    assert near_duplicates([]) == []


def test_blocks_miss_no_pair() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.integers(-128, 128, (1_300, 192)).astype(np.int8)
    vectors[1_299], vectors[700], vectors[511] = vectors[0], vectors[699], vectors[512]
    prints = [vector.tobytes().hex() for vector in vectors]
    assert near_duplicates(prints) == [(0, 1_299), (511, 512), (699, 700)]
