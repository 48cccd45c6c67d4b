"""The gate's tests: agree with what they claim, when counted by hand, and at their ends."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from validation.statistics.paired_tests import (
    MOST,
    MOST_GAIN,
    UNSEEN,
    Difference,
    Question,
    best_effective,
    detectable,
    error_within,
    flipped_bounds,
    further_patients,
    least_effective,
    least_patients,
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


def wild(patients: int, seed: int = 1) -> Difference:
    """Patients who gain or lose up to a third of their cells."""
    rng = np.random.default_rng(seed)
    cells = np.maximum(1, rng.lognormal(3, 1.0, patients)).astype(int)
    found = of_shares(np.round(cells * rng.uniform(-0.33, 0.33, patients)), cells.astype(float))
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
    difference = wild(30)
    for bound, sign in zip(null_variance_bounds(difference, level=level), (1, -1), strict=True):
        cap = MOST_GAIN * np.sqrt(difference.shares / 30)
        capped = sign * np.minimum(sign * difference.gains, cap)
        assert (capped != difference.gains).any(), "some patient gains, some loses more than counts"
        left = capped - bound * difference.shares
        error = math.sqrt(30 / 29 * ((left**2).sum() + UNSEEN**2 / 30))
        assert left.sum() / error == pytest.approx(sign * norm.isf(level))


def test_models_that_agree_on_every_cell_differ_by_nothing_that_is_seen() -> None:
    same = Difference(np.zeros(20), np.full(20, 1 / 20))
    assert flipped_bounds(same, flips=5_000, level=LEVEL) == (0, 0)
    low, high = null_variance_bounds(same, level=LEVEL)
    assert low == -high
    # (-low)^2 (1 - z^2 / 19) = z^2 UNSEEN^2 / 19
    z = norm.isf(LEVEL)
    assert high == pytest.approx(z * UNSEEN / math.sqrt(19 - z**2))


def test_a_difference_that_is_the_same_in_every_patient_is_sure_with_enough_of_them_only() -> None:
    def alike(patients: int) -> Difference:
        return Difference(np.full(patients, 0.03 / patients), np.full(patients, 1 / patients))

    assert flipped_bounds(alike(12), flips=0, level=LEVEL) == pytest.approx((0.03, 0.03))
    low, high = null_variance_bounds(alike(12), level=LEVEL)
    assert 0 < low < 0.03 < high < 0.06, "what is not seen may differ"
    # 2^-8 is above the level, and so is what eight patients can say by their variance.
    assert flipped_bounds(alike(8), flips=0, level=LEVEL) == (-1, 1)
    assert null_variance_bounds(alike(8), level=LEVEL) == (-1, 1)


def test_one_patient_bounds_nothing() -> None:
    alone = Difference(np.array([0.2]), np.array([1.0]))
    assert flipped_bounds(alone, flips=0, level=0.05) == (-1, 1)
    assert null_variance_bounds(alone, level=0.05) == (-1, 1)
    assert math.isnan(alone.error)
    assert detectable([Question("flips", 0, alone.error, alone.effective)], 0.05) is None
    assert best_effective(alone, alone, 0.01) == 0


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
    more = further_patients(
        Question("variance", tonight.value - bound, tonight.error_with_unseen, tonight.effective), 12, LEVEL
    )

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
    more = further_patients(Question("flips", 0.015, error, float(patients)), patients, LEVEL)
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
    """200 sets of patients with exactly that true difference, judged by both kinds of test at one look's level."""
    rng = np.random.default_rng(patients)
    sizes = np.clip(65 + rng.lognormal(3, 1.0, patients), 65, 400)
    shares = sizes / sizes.sum()
    spread, margin = 0.03, 0.01

    def drawn(delta: float) -> Difference:
        return Difference(shares * (delta + spread * rng.normal(0, 1, patients)), shares)

    def found(delta: float, looks: int) -> tuple[float, float, float]:
        many = [drawn(delta) for _ in range(looks)]
        better = [flipped_bounds(one, flips=2_000, level=LEVEL)[0] > 0 for one in many]
        not_worse = [null_variance_bounds(one, level=LEVEL)[0] > -margin for one in many]
        return float(np.mean(better)), float(np.mean(not_worse)), float(np.mean(np.array(better) & not_worse))

    effective = drawn(0).effective
    error, with_unseen = (
        float(np.mean([getattr(drawn(0), name) for _ in range(50)])) for name in ("error", "error_with_unseen")
    )
    superior, guard = Question("flips", 0, error, effective), Question("variance", margin, with_unseen, effective)
    # 80% give or take what 200 sets leave open (three standard errors), and what the formula leaves out.
    for question, kind in ((superior, 0), (guard, 1)):
        delta = detectable([question], LEVEL)
        assert delta is not None
        assert 0.68 <= found(delta, 200)[kind] <= 0.92
    both, alone = detectable([superior, guard], LEVEL), detectable([superior], LEVEL)
    assert both is not None
    assert alone is not None
    assert both >= alone
    assert found(both, 200)[2] >= 0.7
    assert found(both / 2, 100)[2] < 0.4


def test_too_few_patients_detect_nothing_however_alike_they_are() -> None:
    def flips(effective: float) -> Question:
        return Question("flips", 0, 0.001, effective)

    assert detectable([flips(8.0)], LEVEL) is None
    assert detectable([flips(9.0)], LEVEL) is not None
    assert detectable([flips(9.0), Question("variance", 0.01, 0.001, 8.0)], LEVEL) is None
    assert detectable([], LEVEL) is None
    assert further_patients(Question("flips", 0.5, 0.001, 4.0), 4, LEVEL) == 5
    assert further_patients(Question("variance", 0.5, 0.001, 4.0), 4, LEVEL) == 5
    assert further_patients(Question("flips", 1e-9, 1.0, 4.0), 4, LEVEL) > MOST / 2


@pytest.mark.parametrize(("level", "least"), [(LEVEL, 9), (1 / 256, 8), (0.05, 5), (0.5, 1)])
def test_sign_flips_need_so_many_patients_that_differ(level: float, least: int) -> None:
    def alike(patients: int) -> float:
        gains = np.concatenate([np.full(patients, 0.01), np.zeros(12 - patients)])
        return flipped_bounds(Difference(gains, np.full(12, 1 / 12)), flips=0, level=level)[0]

    assert least_patients(level) == least
    assert alike(least) > 0
    assert alike(least - 1) <= 0


# --- gains that sit in few patients ------------------------------------------------------------------------------


def test_a_patient_gains_no_more_than_counts() -> None:
    shares = np.full(16, 1 / 16)
    gains = np.zeros(16)
    gains[:4] = 0.1 / 16  # 10 points of a patient of mean size; 5 count
    twice = gains * 2
    low = null_variance_bounds(Difference(gains, shares), level=LEVEL)[0]
    assert null_variance_bounds(Difference(twice, shares), level=LEVEL)[0] == pytest.approx(low)
    assert null_variance_bounds(Difference(gains / 2, shares), level=LEVEL)[0] == pytest.approx(low)
    # A loss counts in full: it is what the test is for.
    lost = null_variance_bounds(Difference(-gains, shares), level=LEVEL)[0]
    assert null_variance_bounds(Difference(-twice, shares), level=LEVEL)[0] < 1.9 * lost < lost < 0


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.integers(0, 10_000), st.integers(10, 80))
def test_bounds_enclose_the_value_and_turn_with_it(seed: int, patients: int) -> None:
    difference = wild(patients, seed)
    low, high = null_variance_bounds(difference, level=LEVEL)
    assert low <= difference.value <= high
    turned = null_variance_bounds(Difference(-difference.gains, difference.shares), level=LEVEL)
    assert turned == pytest.approx((-high, -low))
    # Twice the same patients say at least as much.
    again = Difference(np.tile(difference.gains, 2) / 2, np.tile(difference.shares, 2) / 2)
    assert null_variance_bounds(again, level=LEVEL)[0] >= low - 1e-12


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.integers(0, 10_000), st.integers(5, 60), st.floats(0, 1))
def test_no_gains_within_their_limits_pass_when_the_best_case_does_not(seed: int, patients: int, part: float) -> None:
    shares, rng = wild(patients, seed).shares, np.random.default_rng(seed)
    least, most = (Difference(sign * np.abs(wild(patients, seed + 1 + sign).gains), shares) for sign in (-1, 1))
    best = best_effective(least, most, 0.01)
    place = np.where(rng.random(patients) < part, rng.random(patients), 1)
    between = Difference(least.gains + place * (most.gains - least.gains), shares)
    for gains in (between, most):
        passes = null_variance_bounds(gains, level=LEVEL)[0] > -0.01
        assert best > least_effective(LEVEL) or not passes
        assert best >= best_effective(gains, gains, 0.01) * (1 - 1e-6)


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.integers(0, 10_000), st.integers(5, 60))
def test_with_no_gains_the_sizes_of_the_patients_decide(seed: int, patients: int) -> None:
    none = Difference(np.zeros(patients), wild(patients, seed).shares)
    squares = patients / (patients - 1) * (UNSEEN / 0.01) ** 2 / patients
    assert best_effective(none, none, 0.01) == pytest.approx(1 / (1 / none.effective + squares))
    # Passing is the same question: a bound above minus the margin.
    passes = null_variance_bounds(none, level=LEVEL)[0] > -0.01
    assert passes == (best_effective(none, none, 0.01) > least_effective(LEVEL))


def test_the_error_behind_a_bound_is_the_one_it_was_made_from() -> None:
    difference = some(40)
    low, _ = null_variance_bounds(difference, level=LEVEL)
    error = error_within(difference.value - low, difference.effective, LEVEL)
    assert error == pytest.approx(difference.error_with_unseen, rel=0.1)
    assert math.isnan(error_within(0.01, 0.0, LEVEL))


def test_a_larger_gain_passes_at_least_as_often() -> None:
    """60 patients of the real sizes, with gains that sit in some of them: the question that capped gains answer."""
    rng = np.random.default_rng(8)

    def passes(gain: float) -> float:
        cells = np.maximum(2, rng.lognormal(3, 1.3, (300, 60))).astype(int)
        hard = rng.beta(0.15, 1.2, (300, 60))  # the share of a patient's cells that are hard
        fixed = rng.binomial(cells, hard * min(1.0, gain / 0.11)) - rng.binomial(cells, 0.002)
        found = [of_shares(f.astype(float), c.astype(float)) for f, c in zip(fixed, cells, strict=True)]
        return float(np.mean([null_variance_bounds(d, level=LEVEL)[0] > -0.01 for d in found if d is not None]))

    rates = [passes(gain) for gain in (0.01, 0.02, 0.04, 0.08)]
    assert all(later >= earlier - 0.03 for earlier, later in itertools.pairwise(rates)), rates
    assert rates[-1] > 0.9, rates
