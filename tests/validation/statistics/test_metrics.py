"""Metrics agree with scikit-learn; intervals hold the truth, with patients as the unit."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import t
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, recall_score, roc_auc_score
from sklearn.metrics import log_loss as reference_log_loss

from validation.records import Interval, Metrics
from validation.statistics.metrics import (
    NAMES,
    Scored,
    compare,
    differences,
    log_loss,
    spreads,
    summarise,
)
from validation.statistics.paired_tests import UNSEEN, flipped_bounds, null_variance_bounds
from validation.statistics.rates import without_each

RESAMPLES = 2_000


def cells(patients: int = 14, seed: int = 5, *, effect: float = 1.0, digits: int = 2, noise: float = 1.2) -> Scored:
    """Cells of patients of unequal size, every third healthy; ``digits`` rounds the scores, so that many are equal."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(8, 60, patients)
    owner = np.repeat(np.arange(patients), sizes)
    labels = (rng.random(len(owner)) < 0.6) & (owner % 3 != 0)
    logit = 1.6 * (2 * labels - 1) + effect * rng.normal(0, 1, patients)[owner] + rng.normal(0, noise, len(owner))
    return Scored(labels, np.round(1 / (1 + np.exp(-logit)), digits), owner.astype(np.int64), 0.47)


def taken(scored: Scored, rows: Any) -> Scored:
    return Scored(scored.labels[rows], scored.probabilities[rows], scored.patients[rows], scored.threshold)


def noisier(scored: Scored, seed: int = 9) -> Scored:
    """Another model on the same cells, right and wrong mostly on the same ones."""
    shift = np.random.default_rng(seed).normal(0.01, 0.04, len(scored.labels))
    return replace(scored, probabilities=np.clip(scored.probabilities + shift, 0, 1), threshold=0.5)


def of(result: Metrics, name: str) -> Interval:
    interval = getattr(result, name)
    assert isinstance(interval, Interval)
    return interval


def width(interval: Interval) -> float:
    return interval.high - interval.low


def by_hand(scored: Scored, rows: Any = slice(None)) -> dict[str, float]:
    """All metrics by scikit-learn."""
    y, p = scored.labels[rows], scored.probabilities[rows]
    called = p >= scored.threshold
    return {
        "accuracy": float((y == called).mean()),
        "balanced_accuracy": balanced_accuracy_score(y, called),
        "auc": roc_auc_score(y, p),
        "sensitivity": recall_score(y, called),
        "specificity": recall_score(~y, ~called),
    }


# --- values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [1, 2, 15])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_values_agree_with_scikit_learn_ties_included(digits: int, seed: int) -> None:
    scored = cells(seed=seed, digits=digits)
    result = summarise(scored)
    for name, value in by_hand(scored).items():
        assert of(result, name).value == pytest.approx(value, abs=1e-12)
    called = scored.probabilities >= scored.threshold
    counts = confusion_matrix(scored.labels, called).ravel().tolist()
    assert [result.tn, result.fp, result.fn, result.tp] == counts
    assert (result.cells, result.patients) == (len(scored.labels), 14)
    assert result.log_loss == pytest.approx(
        reference_log_loss(scored.labels, np.clip(scored.probabilities, 1e-7, 1 - 1e-7))
    )


def test_a_cell_at_the_threshold_is_called_infected() -> None:
    scored = Scored(np.array([True, False]), np.array([0.25, 0.25]), np.array([0, 1]), 0.25)
    result = summarise(scored)
    assert (result.tp, result.fp) == (1, 1)


def test_equal_scores_are_worth_nothing_and_reversed_ones_less() -> None:
    labels, patients = np.array([True, False, True, False]), np.array([0, 0, 1, 1])
    same = Scored(labels, np.full(4, 0.7), patients, 0.5)
    wrong = Scored(labels, np.array([0.1, 0.9, 0.2, 0.8]), patients, 0.5)
    assert of(summarise(same), "auc").value == 0.5
    assert of(summarise(wrong), "auc").value == 0.0


def test_a_sure_mistake_has_a_finite_loss() -> None:
    scored = Scored(np.array([True, False]), np.array([0.0, 1.0]), np.array([0, 1]), 0.5)
    assert 10 < log_loss(scored) < 20


# --- intervals ---------------------------------------------------------------------------------------------------


def test_the_auc_of_weighted_patients_is_that_of_their_cells() -> None:
    scored = cells(patients=9, digits=1)
    weights = np.random.default_rng(3).integers(0, 4, (60, 9)).astype(float)
    for weight, found in zip(weights, scored.auc(weights), strict=True):
        rows = np.concatenate([np.tile(np.flatnonzero(scored.patients == i), int(n)) for i, n in enumerate(weight)])
        assert found == pytest.approx(by_hand(scored, rows)["auc"], abs=1e-12)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_an_interval_is_as_wide_as_the_patients_differ(level: float) -> None:
    """Beside draws of whole patients with replacement, which know nothing of the patients that were not seen."""
    scored = cells(patients=60)
    weights = np.random.default_rng(7).multinomial(60, np.full(60, 1 / 60), size=RESAMPLES).astype(float)
    tp, positives, tn, negatives = (weights @ scored.tallies).T
    found = {
        "auc": scored.auc(weights),
        "sensitivity": tp / positives,
        "specificity": tn / negatives,
        "balanced_accuracy": (tp / positives + tn / negatives) / 2,
        "accuracy": (tp + tn) / (positives + negatives),
    }
    result = summarise(scored, level=level)
    for name, values in found.items():
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
        interval = of(result, name)
        assert 0.85 * (high - low) < width(interval) < 1.5 * (high - low)
        assert interval.low < interval.value < interval.high
        assert interval.level == level


def test_more_cells_of_the_same_patients_are_no_more_evidence() -> None:
    scored = cells()
    tripled = taken(scored, np.repeat(np.arange(len(scored.labels)), 3))
    once, thrice = summarise(scored), summarise(tripled)
    for name in NAMES:
        assert width(of(thrice, name)) > 0.85 * width(of(once, name))
    # Had every cell been its own patient, copies would have passed for evidence.
    alone = replace(scored, patients=np.arange(len(scored.labels)))
    copies = replace(tripled, patients=np.arange(len(tripled.labels)))
    sure, surer = summarise(alone), summarise(copies)
    for name in NAMES:
        assert width(of(surer, name)) == pytest.approx(width(of(sure, name)) / math.sqrt(3), rel=0.2)


def test_cells_that_are_alike_in_a_patient_make_the_interval_wide() -> None:
    scored = cells(patients=20, effect=2.5, noise=0.3, digits=6)
    alone = replace(scored, patients=np.arange(len(scored.labels)))
    by_patient, by_cell = summarise(scored), summarise(alone)
    for name in NAMES:
        assert width(of(by_patient, name)) > 1.5 * width(of(by_cell, name))


def test_the_same_cells_give_the_same_result_in_any_order() -> None:
    scored = cells()
    shuffled = taken(scored, np.random.default_rng(3).permutation(len(scored.labels)))
    first, again = (summarise(one) for one in (scored, cells()))
    assert first == again
    other = summarise(shuffled)
    for name in NAMES:
        assert of(other, name).low == pytest.approx(of(first, name).low, abs=1e-12)
        assert of(other, name).high == pytest.approx(of(first, name).high, abs=1e-12)


@pytest.mark.parametrize("infected", [True, False])
def test_with_one_class_only_what_is_defined_is_given(infected: bool) -> None:
    scored = cells()
    one = replace(scored, labels=np.full(len(scored.labels), infected))
    result = summarise(one)
    assert result.auc is None
    assert result.balanced_accuracy is None
    assert (result.sensitivity is None, result.specificity is None) == (not infected, infected)
    assert of(result, "accuracy").value == of(result, "sensitivity" if infected else "specificity").value
    assert set(compare(one, one, resamples=1_000, level=0.05)) == {
        "accuracy",
        "sensitivity" if infected else "specificity",
    }


def test_a_class_of_a_single_patient_says_little_of_others() -> None:
    scored = cells(patients=6)
    lonely = summarise(replace(scored, labels=scored.labels & (scored.patients == 1)))
    assert width(of(lonely, "sensitivity")) > 0.5
    assert (of(lonely, "auc").low, of(lonely, "auc").high) == (0, 1)


def test_a_single_patient_says_little_of_others() -> None:
    scored = taken(cells(), cells().patients == 1)
    result = summarise(replace(scored, patients=scored.patients - 1))
    assert width(of(result, "balanced_accuracy")) > 0.35
    assert (of(result, "auc").low, of(result, "auc").high) == (0, 1)


def test_no_cells_at_all_give_no_metrics() -> None:
    nothing = Scored(np.zeros(0, bool), np.zeros(0), np.zeros(0, np.int64), 0.5)
    result = summarise(nothing)
    assert (result.cells, result.patients, result.tp, result.fp, result.tn, result.fn) == (0,) * 6
    assert {getattr(result, name) for name in (*NAMES, "log_loss")} == {None}
    assert compare(nothing, nothing, resamples=1_000, level=0.05) == {}


# --- comparisons -------------------------------------------------------------------------------------------------


def test_a_model_does_not_differ_from_itself() -> None:
    many = cells(patients=40)
    found = compare(many, many, resamples=1_000, level=0.05 / 24)
    assert set(found) == set(NAMES)
    unseen = {name: found.pop(name) for name in ("sensitivity", "specificity")}
    assert {(i.value, i.low, i.high) for i in found.values()} == {(0.0, 0.0, 0.0)}
    # A loss may sit in patients who are not among these 40.
    assert all(i.value == 0 and -0.02 < i.low < -0.005 for i in unseen.values())


def test_a_difference_is_challenger_minus_champion() -> None:
    challenger, champion = cells(noise=0.5), noisier(cells(noise=0.5))
    there = compare(challenger, champion, resamples=RESAMPLES, level=0.01)
    back = compare(champion, challenger, resamples=RESAMPLES, level=0.01)
    for name, value in by_hand(challenger).items():
        assert there[name].value == pytest.approx(value - by_hand(champion)[name], abs=1e-12)
        assert back[name].low == pytest.approx(-there[name].high, abs=1e-12)
        assert back[name].high == pytest.approx(-there[name].low, abs=1e-12)


def test_the_bounds_of_a_difference_of_aucs_are_those_of_leaving_out_patients() -> None:
    challenger, champion = cells(digits=9), noisier(cells(digits=9))
    found = compare(challenger, champion, resamples=1_000, level=0.05)["auc"]
    without = challenger.auc(without_each(14)) - champion.auc(without_each(14))
    error = math.sqrt(13 / 14 * ((without - without.mean()) ** 2).sum())
    shares = np.bincount(challenger.patients) / len(challenger.labels)
    quantile = t.isf(0.05, 1 / (shares @ shares) - 1)
    assert (found.low, found.high) == pytest.approx((found.value - quantile * error, found.value + quantile * error))
    sure = compare(challenger, champion, resamples=1_000, level=0.05 / 24)["auc"]
    assert sure.low < found.low < found.value < found.high < sure.high


def test_every_difference_is_tested_by_the_method_that_was_chosen_for_it() -> None:
    challenger, champion = cells(patients=30, noise=0.5), noisier(cells(patients=30, noise=0.5))
    found = compare(challenger, champion, resamples=3_000, level=0.01)
    by_patient = differences(challenger, champion)
    assert set(by_patient) == set(NAMES) - {"auc"}
    for name, difference in by_patient.items():
        if name in ("sensitivity", "specificity"):
            bounds = null_variance_bounds(difference, level=0.01)
        else:
            bounds = flipped_bounds(difference, flips=3_000, level=0.01)
        assert found[name].value == pytest.approx(by_hand(challenger)[name] - by_hand(champion)[name], abs=1e-12)
        assert (found[name].low, found[name].high) == bounds
        assert found[name].level == pytest.approx(0.98)


def test_agreement_on_every_cell_is_not_taken_for_certainty() -> None:
    many = cells(patients=40)
    known = spreads(many, many)
    infected = len(np.unique(many.patients[many.labels]))
    assert known["sensitivity"].error == pytest.approx(UNSEEN / math.sqrt(infected - 1))
    assert 0 < known["balanced_accuracy"].error < known["sensitivity"].error + known["specificity"].error
    other = spreads(many, noisier(many))
    assert all(other[name].error >= known[name].error for name in known)
    assert 1 < known["specificity"].effective_patients < 40


def test_two_equal_models_are_seldom_called_different() -> None:
    """One-sided level 0.05, 12 patients of very unequal size: false alarms stay near the level."""
    rng = np.random.default_rng(5)
    level, looks, alarms = 0.05, 200, 0
    for _ in range(looks):
        sizes = rng.integers(8, 60, 12)
        patients = np.repeat(np.arange(12), sizes)
        labels = rng.random(len(patients)) < 0.5
        skill = 1.5 + rng.normal(0, 0.5, (2, 12))
        one, two = (
            Scored(
                labels, np.where(labels, 1.0, -1.0) * s[patients] / 2 + rng.normal(0, 1, len(patients)), patients, 0.0
            )
            for s in skill
        )
        alarms += compare(one, two, resamples=400, level=level)["balanced_accuracy"].low > 0
    # 200 looks at 0.05: 10 expected, more than 19 has a chance of 0.3% (binomial).
    assert alarms <= 19


def test_pairing_makes_the_interval_narrower() -> None:
    challenger, champion = cells(effect=1.5), noisier(cells(effect=1.5))
    paired = compare(challenger, champion, resamples=RESAMPLES, level=0.025)
    ours, theirs = (summarise(one) for one in (challenger, champion))
    for name in NAMES:
        unpaired = math.hypot(width(of(ours, name)), width(of(theirs, name)))
        assert 0 < width(paired[name]) < 0.7 * unpaired
