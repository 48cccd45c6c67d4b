"""The gate's tests: agree with what they claim, when counted by hand, and at their ends."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import norm

from validation.statistics.paired_tests import (
    Difference,
    detectable,
    flipped_bounds,
    further_patients,
    mean_of,
    null_variance_bounds,
    of_shares,
)

LEVEL = 0.05 / 24


def some(patients: int = 8, *, seed: int = 1, gain: float = 0.03) -> Difference:
    """Patients of very unequal size, of whom some gain and some lose."""
    rng = np.random.default_rng(seed)
    cells = np.maximum(1, 65 + rng.lognormal(3, 1.4, patients)).astype(int)
    right = rng.binomial(cells, 0.04 + gain) - rng.binomial(cells, 0.04)
    found = of_shares(right.astype(float), cells.astype(float))
    assert found is not None
    return found


def p_by_hand(difference: Difference, delta: float) -> float:
    """Share of all sign flips whose sum is at least the observed one, if the true difference is ``delta``."""
    left = difference.gains - delta * difference.shares
    sums = [float(np.dot(signs, left)) for signs in itertools.product([1.0, -1.0], repeat=len(left))]
    return float(np.mean([s >= left.sum() - 1e-12 for s in sums]))


@pytest.mark.parametrize("level", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_bound_of_sign_flips_is_where_their_p_value_crosses_the_level(level: float, seed: int) -> None:
    difference = some(seed=seed)
    low, high = flipped_bounds(difference, flips=0, level=level)
    assert low < difference.value < high
    assert p_by_hand(difference, low - 1e-6) <= level < p_by_hand(difference, low + 1e-6)
    turned = Difference(-difference.gains, difference.shares)
    assert flipped_bounds(turned, flips=0, level=level) == pytest.approx((-high, -low))


def test_drawn_flips_come_to_about_what_all_flips_come_to() -> None:
    difference = some(13)
    drawn = flipped_bounds(difference, flips=20_000, level=0.05)
    twelve = Difference(difference.gains[:12], difference.shares[:12])
    assert flipped_bounds(difference, flips=20_000, level=0.05) == drawn  # the same flips every time
    low, high = drawn
    assert p_by_hand(difference, low) == pytest.approx(0.05, abs=0.01)
    assert p_by_hand(Difference(-difference.gains, difference.shares), -high) == pytest.approx(0.05, abs=0.01)
    assert flipped_bounds(twelve, flips=0, level=0.05)[0] > -1  # counted, not drawn


@pytest.mark.parametrize("level", [LEVEL, 0.05])
def test_at_the_bound_of_the_variance_the_statistic_is_its_quantile(level: float) -> None:
    difference = some(30)
    for bound, sign in zip(null_variance_bounds(difference, level=level), (1, -1), strict=True):
        left = difference.gains - bound * difference.shares
        error = math.sqrt(30 / 29 * (left**2).sum())
        assert left.sum() / error == pytest.approx(sign * norm.isf(level))


@pytest.mark.parametrize("bounds", ["flips", "variance"])
def test_models_that_agree_on_every_cell_differ_by_nothing(bounds: str) -> None:
    same = Difference(np.zeros(20), np.full(20, 1 / 20))
    found = (
        flipped_bounds(same, flips=5_000, level=LEVEL) if bounds == "flips" else null_variance_bounds(same, level=LEVEL)
    )
    assert found == (0, 0)


def test_a_difference_that_is_the_same_in_every_patient_is_sure_with_enough_of_them_only() -> None:
    def alike(patients: int) -> Difference:
        return Difference(np.full(patients, 0.03 / patients), np.full(patients, 1 / patients))

    assert flipped_bounds(alike(12), flips=0, level=LEVEL) == pytest.approx((0.03, 0.03))
    assert null_variance_bounds(alike(12), level=LEVEL) == pytest.approx((0.03, 0.03))
    # 2^-8 is above the level, and so is what eight patients can say by their variance.
    assert flipped_bounds(alike(8), flips=0, level=LEVEL) == (-1, 1)
    assert null_variance_bounds(alike(8), level=LEVEL) == (-1, 1)


def test_one_patient_bounds_nothing() -> None:
    alone = Difference(np.array([0.2]), np.array([1.0]))
    assert flipped_bounds(alone, flips=0, level=0.05) == (-1, 1)
    assert null_variance_bounds(alone, level=0.05) == (-1, 1)
    assert math.isnan(alone.error)
    assert detectable(alone.error, alone.effective, 0.05) is None


def test_one_large_patient_does_not_speak_for_many_small_ones() -> None:
    shares = np.array([0.8, *np.full(19, 0.2 / 19)])
    assert null_variance_bounds(Difference(0.1 * shares, shares), level=LEVEL) == (-1, 1)
    assert Difference(shares, shares).effective < 2


def test_patients_without_a_class_say_nothing_about_it() -> None:
    right, cells = np.array([1.0, 0.0, 2.0]), np.array([10.0, 0.0, 30.0])
    found = of_shares(right, cells)
    assert found is not None
    assert found.value == pytest.approx(3 / 40)
    assert len(found.gains) == 2
    assert of_shares(right, np.zeros(3)) is None
    # A healthy patient counts in the balanced accuracy, by its other class.
    other = of_shares(np.array([0.0, -1.0, 1.0]), np.array([5.0, 5.0, 10.0]))
    mean = mean_of(found, other, (cells > 0, np.array([True, True, True])))
    assert mean is not None
    assert mean.value == pytest.approx((3 / 40 + 0) / 2)
    assert mean.shares.sum() == pytest.approx(1)
    assert mean_of(None, other, (cells > 0, cells > 0)) is None


def test_the_error_is_that_of_leaving_patients_out() -> None:
    """The jackknife agrees with the linearised error when no patient is large."""
    rng = np.random.default_rng(3)
    cells = rng.integers(80, 120, 60).astype(float)
    right = rng.normal(0.02, 0.05, 60) * cells
    found = of_shares(right, cells)
    assert found is not None
    without = [(right.sum() - r) / (cells.sum() - c) for r, c in zip(right, cells, strict=True)]
    jackknife = math.sqrt(59 / 60 * ((np.array(without) - np.mean(without)) ** 2).sum())
    assert found.error == pytest.approx(jackknife, rel=0.02)


@pytest.mark.parametrize("bound", [0.0, -0.01])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_so_many_further_patients_of_the_same_kind_settle_it_by_their_variance(bound: float, seed: int) -> None:
    tonight = some(12, seed=seed, gain=0.012)
    assert null_variance_bounds(tonight, level=LEVEL)[0] <= bound < tonight.value
    more = further_patients("variance", tonight.value - bound, (tonight.error, tonight.effective), 12, LEVEL)

    def times(count: int) -> float:
        again = Difference(np.tile(tonight.gains, count) / count, np.tile(tonight.shares, count) / count)
        return null_variance_bounds(again, level=LEVEL)[0]

    # The same patients over and over: they are what the estimate assumes, but for 12 / 11 in tonight's variance.
    assert times(math.ceil((12 + more) / 12) + 1) > bound
    assert times(max(1, int(0.85 * (12 + more) / 12))) <= bound


@pytest.mark.parametrize("patients", [16, 24])
def test_with_so_many_further_patients_sign_flips_settle_it_about_every_second_time(patients: int) -> None:
    """That is what an estimate at an unchanged difference means: it will be a little more or a little less."""
    rng = np.random.default_rng(patients)
    error = 0.03 / math.sqrt(patients)
    more = further_patients("flips", 0.015, (error, float(patients)), patients, LEVEL)
    total = patients + more
    found = [
        flipped_bounds(
            Difference((0.015 + 0.03 * rng.normal(0, 1, total)) / total, np.full(total, 1 / total)),
            flips=2_000,
            level=LEVEL,
        )[0]
        > 0
        for _ in range(200)
    ]
    # Half of 200, give or take three standard errors and what the formula leaves out.
    assert 0.37 <= np.mean(found) <= 0.63


@pytest.mark.parametrize("patients", [24, 60])
def test_the_smallest_detectable_difference_is_found_in_four_looks_of_five(patients: int) -> None:
    """200 holdouts with exactly that true difference, judged by the gate's own test at one look's level."""
    rng = np.random.default_rng(patients)
    sizes = np.clip(65 + rng.lognormal(3, 1.0, patients), 65, 400)
    shares = sizes / sizes.sum()
    spread = 0.03

    def holdout(delta: float) -> Difference:
        return Difference(shares * (delta + spread * rng.normal(0, 1, patients)), shares)

    errors = [holdout(0).error for _ in range(50)]
    delta = detectable(float(np.mean(errors)), holdout(0).effective, LEVEL)
    assert delta is not None
    found = np.mean([flipped_bounds(holdout(delta), flips=2_000, level=LEVEL)[0] > 0 for _ in range(200)])
    # 80% give or take what 200 holdouts leave open (three standard errors), and what the formula leaves out.
    assert 0.7 <= found <= 0.9
    half = np.mean([flipped_bounds(holdout(delta / 2), flips=2_000, level=LEVEL)[0] > 0 for _ in range(100)])
    assert half < 0.3


def test_too_few_patients_detect_nothing_however_alike_they_are() -> None:
    assert detectable(0.001, 8.0, LEVEL) is None
    assert detectable(0.001, 9.0, LEVEL) is not None
    assert further_patients("flips", 0.5, (0.001, 4.0), 4, LEVEL) == 5
    assert further_patients("variance", 0.5, (0.001, 4.0), 4, LEVEL) == 5
