"""Intervals of one model hold what is true of other patients."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from validation.records import Interval
from validation.statistics.rates import (
    effective_patients,
    jackknife_error,
    jackknife_interval,
    mean_interval,
    rate_interval,
    without_each,
)

steady = settings(deadline=None, derandomize=True, max_examples=100)


def interval(right: list[float], cells: list[float]) -> Interval:
    found = rate_interval(np.array(right), np.array(cells), 0.95)
    assert found is not None
    return found


def test_patients_of_one_cell_give_the_interval_of_independent_cells() -> None:
    found = interval([1.0] * 180 + [0.0] * 20, [1.0] * 200)
    low, high = (beta.ppf(at, 180.5, 20.5) for at in (0.025, 0.975))
    assert found.value == 0.9
    assert (found.low, found.high) == pytest.approx((low, high), abs=2e-3)


def test_cells_that_are_alike_in_a_patient_are_worth_one() -> None:
    alike = interval([20.0] * 18 + [0.0] * 2, [20.0] * 20)
    mixed = interval([18.0] * 20, [20.0] * 20)
    low, high = (beta.ppf(at, 18.5, 2.5) for at in (0.025, 0.975))
    assert (alike.low, alike.high) == pytest.approx((low, high), abs=0.03)
    assert mixed.high - mixed.low < 0.4 * (alike.high - alike.low)


def test_all_right_is_not_certain() -> None:
    found = interval([5.0] * 30, [5.0] * 30)
    assert found.value == found.high == 1
    assert 0.9 < found.low < 0.995


def test_patients_without_cells_say_nothing() -> None:
    assert interval([5.0, 0.0, 3.0, 4.0], [5.0, 0.0, 4.0, 4.0]) == interval([5.0, 3.0, 4.0], [5.0, 4.0, 4.0])
    assert rate_interval(np.zeros(3), np.zeros(3), 0.95) is None


@steady
@given(
    st.lists(st.tuples(st.integers(1, 300), st.floats(0, 1)), min_size=1, max_size=40),
    st.sampled_from([0.8, 0.95, 0.99]),
)
def test_any_tallies_have_an_interval_that_holds_the_share_and_turns_with_it(
    patients: list[tuple[int, float]], level: float
) -> None:
    cells = np.array([float(n) for n, _ in patients])
    right = np.round(cells * [rate for _, rate in patients])
    found, turned = rate_interval(right, cells, level), rate_interval(cells - right, cells, level)
    assert found is not None
    assert turned is not None
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.value == pytest.approx(right.sum() / cells.sum())
    assert (1 - turned.high, 1 - turned.low) == pytest.approx((found.low, found.high), abs=1e-6)
    wider = rate_interval(right, cells, 1 - (1 - level) / 2)
    assert wider is not None
    assert wider.low <= found.low
    assert found.high <= wider.high


def test_rates_of_other_patients_are_held_as_often_as_promised() -> None:
    """200 sets of 60 patients: 95% of the intervals, give or take three standard errors, or a little more often."""
    rng = np.random.default_rng(4)
    held = 0
    for _ in range(200):
        cells = np.clip(rng.lognormal(2.5, 1.0, 60), 1, 200).astype(int)
        right = rng.binomial(cells, rng.beta(0.94 * 20, 0.06 * 20, 60))
        found = interval(right.astype(float).tolist(), cells.astype(float).tolist())
        held += found.low <= 0.94 <= found.high
    assert 0.9 <= held / 200 < 1


def test_the_interval_of_a_mean_adds_distances_like_errors() -> None:
    one, two = Interval(value=0.9, low=0.84, high=0.94), Interval(value=0.8, low=0.72, high=0.83)
    found = mean_interval(one, two)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((0.85, 0.85 - 0.05, 0.85 + 0.025))
    assert mean_interval(one, None) is None
    assert mean_interval(None, two) is None


def test_leaving_out_patients_gives_the_error_of_a_mean() -> None:
    values = np.random.default_rng(1).normal(0, 1, 25)
    without = without_each(25) @ values / 24
    assert jackknife_error(without) == pytest.approx(values.std(ddof=1) / 5)


def test_what_leaving_out_patients_cannot_know_is_unknown() -> None:
    assert jackknife_error(np.array([0.5])) == math.inf
    assert jackknife_error(np.array([0.5, np.nan, 0.4])) == math.inf
    lonely = jackknife_interval(0.5, np.array([0.5, np.nan, 0.4]), np.ones(3), 0.95, lowest=-1.0)
    assert lonely == Interval(value=0.5, low=-1.0, high=1.0)
    assert jackknife_interval(math.nan, np.array([0.5, 0.4]), np.ones(2), 0.95) is None


def test_a_metric_at_its_limit_is_not_certain() -> None:
    cells = np.full(20, 40.0)
    found = jackknife_interval(1.0, np.full(20, 1.0), cells, 0.95)
    assert found is not None
    assert found == interval([40.0] * 20, [40.0] * 20)
    assert 0.9 < found.low < 0.999
    worst = jackknife_interval(-1.0, np.full(20, -1.0), cells, 0.95, lowest=-1.0)
    assert worst is not None
    assert worst.low == -1 < worst.high < -0.8


def test_an_interval_stays_within_the_limits_and_fewer_effective_patients_know_less() -> None:
    without = np.linspace(0.985, 0.9945, 20)
    near = jackknife_interval(0.99, without, np.full(20, 40.0), 0.95)
    fewer = jackknife_interval(0.99, without, np.array([400.0] * 3 + [1.0] * 17), 0.95)
    assert near is not None
    assert fewer is not None
    assert 0 < fewer.low < near.low < 0.99 < near.high < fewer.high < 1


def test_effective_patients_are_patients_of_equal_size() -> None:
    assert effective_patients(np.full(7, 30.0)) == pytest.approx(7)
    assert effective_patients(np.array([100.0, 1.0, 1.0])) < 1.1
    assert effective_patients(np.zeros(3)) == 0
