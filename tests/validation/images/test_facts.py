"""Judging one image: every reason has its image and its near miss, and bounds are learned."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest

from tests.validation.images.test_measure import disc
from validation.images.decode import RGB, Decoded
from validation.images.facts import FACT_NAMES, ImageFacts, judge_image, learn_bounds
from validation.images.measure import measure
from validation.rules import DataRules

RULES = DataRules()
BOUNDS = {
    "focus": (1.5, 3.0),
    "brightness": (100.0, 220.0),
    "saturation": (0.1, 0.6),
    "hue": (-60.0, 20.0),
    "cell_pixels": (2_000.0, 9_000.0),
}


def facts(rgb: RGB) -> ImageFacts:
    return measure(Decoded(np.ascontiguousarray(rgb), "PNG", "RGB"), size=1)


CELL = disc()
GOOD = facts(CELL)
TIGHT = CELL[10:90, 10:90]


def on_black(rgb: RGB, side: int) -> RGB:
    return np.pad(rgb, ((0, side - rgb.shape[0]), (0, side - rgb.shape[1]), (0, 0)))


def grain(spread: int, low: int = 60) -> RGB:
    return np.random.default_rng(1).integers(low, low + spread, (60, 60, 3)).astype(np.uint8)


# Every reason: facts that have it, a near miss that has not.
JUDGED: list[tuple[str, ImageFacts, ImageFacts]] = [
    ("too small", facts(CELL[40:55, 40:60]), facts(CELL[40:56, 40:60])),
    ("too large", replace(GOOD, width=4_097), replace(GOOD, width=4_096)),
    ("odd aspect", facts(np.pad(TIGHT, ((0, 0), (0, 241), (0, 0)))), facts(np.pad(TIGHT, ((0, 0), (0, 240), (0, 0))))),
    ("no cell", facts(np.zeros_like(CELL)), facts(on_black(disc(30, 14), 160))),
    ("no cell", facts(on_black(disc(30, 14), 190)), facts(on_black(disc(30, 14), 160))),
    ("blank", facts(np.where(CELL > 0, 150, 0).astype(np.uint8)), GOOD),
    ("blank", facts(np.full((60, 60, 3), 255, np.uint8)), facts(grain(90))),
    ("blank", facts(grain(8)), facts(np.pad(grain(8), ((3, 3), (3, 3), (0, 0))))),  # an empty field; an even cell
    ("several cells", facts(np.hstack([CELL, disc(seed=2)])), facts(np.hstack([CELL, on_black(disc(40, 14), 100)]))),
    ("cell cut off", facts(TIGHT[:50]), facts(TIGHT)),
    ("cell cut off", facts(TIGHT[:, 30:]), facts(TIGHT[:, 3:])),
    ("out of focus", replace(GOOD, focus=1.49), replace(GOOD, focus=1.5)),
    ("stain out of range", replace(GOOD, brightness=99.9), replace(GOOD, brightness=100.0)),
    ("stain out of range", replace(GOOD, brightness=220.1), replace(GOOD, brightness=220.0)),
    ("stain out of range", replace(GOOD, saturation=0.61), replace(GOOD, saturation=0.6)),
    ("stain out of range", replace(GOOD, hue=21.0), replace(GOOD, hue=20.0)),
    ("stain out of range", replace(GOOD, hue=299.0), replace(GOOD, hue=300.0)),
    ("unusual size", replace(GOOD, cell_pixels=9_001), replace(GOOD, cell_pixels=9_000)),
    ("unusual size", replace(GOOD, cell_pixels=1_999), replace(GOOD, cell_pixels=2_000)),
]


def reasons(found: ImageFacts, bounds: dict[str, tuple[float, float]] | None = None) -> set[str]:
    problems = judge_image(found, RULES, BOUNDS if bounds is None else bounds)
    assert all(problem.detail for problem in problems)
    return {problem.reason for problem in problems}


def test_a_good_cell_is_good() -> None:
    assert reasons(GOOD) == set()


@pytest.mark.parametrize(("reason", "bad", "near_miss"), JUDGED, ids=[f"{i}-{j[0]}" for i, j in enumerate(JUDGED)])
def test_each_reason_has_its_images_and_near_misses(reason: str, bad: ImageFacts, near_miss: ImageFacts) -> None:
    assert reason in reasons(bad)
    assert reason not in reasons(near_miss)


def test_all_that_is_wrong_is_told() -> None:
    wrong = replace(GOOD, objects=2, edge_clipping=1.0, focus=0.5, brightness=50.0, saturation=0.9, cell_pixels=99_999)
    assert reasons(wrong) == {"several cells", "cell cut off", "out of focus", "stain out of range", "unusual size"}
    stain = next(p for p in judge_image(wrong, RULES, BOUNDS) if p.reason == "stain out of range")
    assert stain.detail == "brightness 50, 100 to 220 expected; saturation 0.9, 0.1 to 0.6 expected"


def test_what_has_no_bound_is_not_judged() -> None:
    assert reasons(replace(GOOD, focus=0.1, brightness=9.0, hue=120.0, cell_pixels=9), {}) == set()
    assert reasons(replace(GOOD, focus=0.1, brightness=9.0), {"focus": (1, 2)}) == {"out of focus"}


def test_where_there_is_no_cell_nothing_is_said_about_it() -> None:
    assert reasons(facts(np.zeros_like(CELL))) == {"no cell"}
    assert reasons(facts(np.full_like(CELL, 255))) == {"blank"}


def test_a_rule_can_be_set() -> None:
    lenient = RULES.model_copy(update={"max_edge_clipping": 2.0, "max_aspect": 10.0})
    assert judge_image(facts(TIGHT[:50]), lenient, {}) == []


# --- bounds ------------------------------------------------------------------------------------------------------


def cells(count: int = 400, *, hue: float = 350.0, seed: int = 1) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    table = pd.DataFrame([asdict(GOOD)] * count)
    table["focus"] = rng.normal(1.3, 0.1, count)
    table["brightness"] = rng.normal(160, 8, count)
    table["saturation"] = rng.uniform(0.2, 0.3, count)
    table["hue"] = rng.normal(hue, 5, count) % 360
    table["cell_pixels"] = rng.lognormal(9.4, 0.2, count).astype(int)
    return table


def alarms(table: pd.DataFrame, bounds: dict[str, tuple[float, float]]) -> list[set[str]]:
    return [reasons(ImageFacts(*row), bounds) for row in table[list(FACT_NAMES)].itertuples(index=False, name=None)]


def test_images_like_those_learned_from_are_in_range() -> None:
    table = cells()
    # The short reach of focus leaves 0.35% of a normal distribution outside.
    for like_them in (table, cells(seed=2)):
        assert sum(map(bool, alarms(like_them, learn_bounds(table)))) <= 8


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"focus": 0.9}, "out of focus"),
        ({"brightness": 120.0}, "stain out of range"),
        ({"brightness": 200.0}, "stain out of range"),
        ({"saturation": 0.5}, "stain out of range"),
        ({"hue": 120.0}, "stain out of range"),
        ({"hue": 240.0}, "stain out of range"),
        ({"cell_pixels": 40_000}, "unusual size"),
        ({"cell_pixels": 2_500}, "unusual size"),
    ],
)
def test_others_are_not(change: dict[str, float], reason: str) -> None:
    table = cells(1).assign(**{"hue": 350.0, "focus": 1.3, "brightness": 160.0, "cell_pixels": 12_000, **change})
    assert alarms(table, learn_bounds(cells())) == [{reason}]


def test_a_sharper_cell_is_no_fault() -> None:
    assert reasons(replace(GOOD, focus=9.0), {"focus": learn_bounds(cells())["focus"]}) == set()


@pytest.mark.parametrize("hue", [0.0, 90.0, 180.0, 355.0])
def test_hue_is_round(hue: float) -> None:
    bounds = {"hue": learn_bounds(cells(hue=hue))["hue"]}
    for turn in (0, 30, -30, 90, 180):
        found = reasons(replace(GOOD, hue=(hue + turn) % 360, saturation=0.3), bounds)
        assert found == ({"stain out of range"} if abs(turn) > 30 else set())


def test_the_hue_of_grey_is_an_accident_and_not_judged() -> None:
    bounds = {"hue": learn_bounds(cells())["hue"]}
    assert reasons(replace(GOOD, hue=180.0, saturation=0.04), bounds) == set()
    assert reasons(replace(GOOD, hue=180.0, saturation=0.06), bounds) == {"stain out of range"}


def test_a_few_bad_images_do_not_widen_the_bounds() -> None:
    good, some = learn_bounds(cells()), cells()
    some.loc[:3, ["focus", "brightness", "cell_pixels"]] = [0.0, 10.0, 500_000]
    spoilt = learn_bounds(some)
    for name in ("focus", "brightness", "cell_pixels"):
        assert spoilt[name] == pytest.approx(good[name], rel=0.25)


def test_little_or_nothing_to_learn_from_is_no_error() -> None:
    assert learn_bounds(cells(0)) == {}
    one = learn_bounds(cells(1))
    assert all(low <= high for low, high in one.values())
    grey = cells(5).assign(saturation=0.0, hue=0.0)
    assert reasons(replace(GOOD, hue=200.0, saturation=0.5), {"hue": learn_bounds(grey)["hue"]}) == set()


@pytest.mark.parametrize(
    ("pixels", "expected"), [(1600, set()), (1900, set()), (1300, set()), (2100, {"unusual size"})]
)
def test_cells_that_were_all_cut_to_one_size_are_of_no_unusual_size(pixels: int, expected: set[str]) -> None:
    bounds = {"cell_pixels": learn_bounds(cells().assign(cell_pixels=1600))["cell_pixels"]}
    assert reasons(replace(GOOD, cell_pixels=pixels), bounds) == expected
