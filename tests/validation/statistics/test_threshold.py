"""The frozen threshold: near the one that calibration calls for, unless the tuning patients clearly speak."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.validation.statistics.test_metrics import cells
from validation.statistics.threshold import RESAMPLES, choose_threshold, draws

steady = settings(deadline=None, derandomize=True, max_examples=200)

NEIGHBOURS = {
    np.dtype(kind): [
        *(kind(x) for x in (0.0, 1e-30, 0.1, 0.25, 0.3, 0.5, 0.7, 0.999, 1.0)),
        *(np.nextafter(kind(x), kind(1)) for x in (0.0, 0.1, 0.25, 0.5)),
        np.nextafter(kind(1), kind(0)),
    ]
    for kind in (np.float32, np.float64)
}


def balanced(labels: Any, called: Any) -> float:
    return float((np.mean(called[labels]) + np.mean(~called[~labels])) / 2)


def one_patient(labels: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """All cells are of one patient: no draw differs from another, so nothing but the best is near it."""
    return np.zeros(len(labels), np.int64)


@steady
@given(st.sampled_from(list(NEIGHBOURS)), st.lists(st.tuples(st.booleans(), st.integers(0, 13)), min_size=2))
@example(np.dtype(np.float32), [(False, 2), (True, 10)])  # two neighbouring floats: nothing lies between them
@example(np.dtype(np.float64), [(False, 11), (False, 3), (True, 11), (True, 3)])
@example(np.dtype(np.float64), [(True, 0), (False, 8), (True, 0), (False, 8)])  # upside down, with scores of 1
def test_without_noise_no_cut_is_better_than_the_chosen_one(kind: np.dtype[Any], drawn: list[tuple[bool, int]]) -> None:
    labels = np.array([label for label, _ in drawn])
    scores = np.array([NEIGHBOURS[kind][i] for _, i in drawn], dtype=kind)
    threshold = choose_threshold(labels, scores, one_patient(labels), prevalence=0.5)
    assert 0 <= threshold <= 1
    if labels.all() or not labels.any():
        assert threshold == 0.5
        return
    best = max(balanced(labels, scores >= cut) for cut in scores)
    for called in (scores >= threshold, scores.astype(np.float64) >= threshold):
        assert balanced(labels, called) == pytest.approx(best, abs=1e-12)


@steady
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 20), st.integers(0, 3)), min_size=4, max_size=40),
    st.sampled_from([0.1, 0.37, 0.5]),
)
def test_it_is_the_nearest_to_the_prevalence_of_all_within_one_standard_error(
    drawn: list[tuple[bool, int, int]], prevalence: float
) -> None:
    labels = np.array([label for label, _, _ in drawn])
    if labels.all() or not labels.any():
        return
    scores = np.array([score / 20 for _, score, _ in drawn])
    _, patients = np.unique([patient for *_, patient in drawn], return_inverse=True)
    chosen = choose_threshold(labels, scores, patients, prevalence=prevalence)

    # By hand: every cut between two scores, and every draw of patients.
    values = np.unique(scores)
    gaps = list(zip([0.0, *values], [*values, 1.0], strict=True))
    gaps = [(low, high) for low, high in gaps if low < high or high == 0.0]  # nothing lies above a score of 1
    calls = [scores >= high if high in values else np.zeros(len(labels), bool) for _, high in gaps]
    points = np.array([balanced(labels, called) for called in calls])
    weights = np.array([w[patients] for w in draws(int(patients.max()) + 1, RESAMPLES)], float)
    infected, healthy = weights * labels, weights * ~labels
    both = infected.any(axis=1) & healthy.any(axis=1)
    infected, healthy, made = infected[both], healthy[both], np.array(calls, float).T
    # Draws in rows, cuts in columns: the share of each class that a cut calls rightly, weighed by the draw.
    spread = (infected @ made / infected.sum(axis=1, keepdims=True)
              + healthy @ (1 - made) / healthy.sum(axis=1, keepdims=True)) / 2  # fmt: skip
    equal = np.flatnonzero(points >= points.max() - 1e-12)
    mine = next(i for i, called in enumerate(calls) if (called == (scores >= chosen)).all())

    def within(index: int, best: int) -> bool:
        error = (spread[:, index] - spread[:, best]).std()
        return bool(points[index] >= points[best] - error - 1e-9)

    def distance(index: int) -> float:
        low, high = gaps[index]
        return float(max(0.0, low - prevalence, prevalence - high))

    # Several cuts may be equally good; which of them the others are measured against is the module's own choice.
    assert any(
        within(mine, int(best))
        and all(distance(mine) <= distance(i) + 1e-12 for i in range(len(gaps)) if within(i, int(best)))
        for best in equal
    )


def test_it_lies_in_the_middle_of_the_gap() -> None:
    labels = np.array([False, False, True, True])
    for scores, middle in (([0.1, 0.2, 0.8, 0.9], 0.5), ([0.1, 0.4, 0.8, 0.9], 0.6)):
        found = choose_threshold(labels, np.array(scores), one_patient(labels), prevalence=0.5)
        assert found == pytest.approx(middle)


def test_on_fresh_patients_it_calls_better_than_the_validation_patients_own_best() -> None:
    """Calibrated probabilities of ten patients each time, and what either threshold is worth on a thousand others."""
    rng = np.random.default_rng(0)

    def patients(count: int) -> tuple[Any, Any, Any]:
        owner = np.repeat(np.arange(count), 100)
        # Log odds that are true on average over patients, each of whom has a stain of their own.
        labels = rng.random(len(owner)) < 0.5
        odds = 2.0 * (2 * labels - 1) + rng.normal(0, 2.0, len(owner)) + rng.normal(0, 0.7, count)[owner]
        return labels, 1 / (1 + np.exp(-odds)), owner

    fresh_labels, fresh_scores, _ = patients(1_000)
    gains = []
    for _ in range(40):
        labels, scores, owner = patients(10)
        ours = choose_threshold(labels, scores, owner, prevalence=0.5)
        best = choose_threshold(labels, scores, one_patient(labels), prevalence=0.5)
        gains.append(balanced(fresh_labels, fresh_scores >= ours) - balanced(fresh_labels, fresh_scores >= best))
    assert np.mean(gains) > 2 * np.std(gains) / np.sqrt(len(gains))


def test_clear_evidence_overrules_the_prevalence() -> None:
    """Twenty patients that agree: all infected cells score above 0.1, all others below."""
    rng = np.random.default_rng(1)
    owner = np.repeat(np.arange(20), 50)
    labels = rng.random(len(owner)) < 0.5
    scores = np.where(labels, rng.uniform(0.12, 0.9, len(owner)), rng.uniform(0, 0.1, len(owner)))
    assert 0.09 < choose_threshold(labels, scores, owner, prevalence=0.5) < 0.13


@pytest.mark.parametrize("target", [0.5, 0.9, 0.99, 1.0])
def test_a_target_sensitivity_is_reached_and_the_rest_goes_to_specificity(target: float) -> None:
    for seed in range(5):
        scored = cells(seed=seed)
        labels, scores = scored.labels, scored.probabilities
        chosen = choose_threshold(labels, scores, scored.patients, prevalence=0.4, target_sensitivity=target)
        called = scores >= chosen
        assert called[labels].mean() >= target
        reached = [cut for cut in np.unique(scores) if (scores >= cut)[labels].mean() >= target]
        best = max(balanced(labels, scores >= cut) for cut in reached)
        assert balanced(labels, called) == pytest.approx(best, abs=1e-12)


def test_it_does_not_depend_on_the_order_of_cells() -> None:
    for seed in range(5):
        scored = cells(seed=seed, digits=2)
        order = np.random.default_rng(1).permutation(len(scored.labels))
        there, here = (
            choose_threshold(scored.labels[rows], scored.probabilities[rows], scored.patients[rows], prevalence=0.4)
            for rows in (order, slice(None))
        )
        assert there == here


def test_every_draw_has_as_many_patients_as_there_are() -> None:
    weights = draws(20, 5_000)
    assert (weights.sum(axis=1) == 20).all()
    assert weights.mean(axis=0) == pytest.approx(1, abs=0.08)
    # The chance that a given patient is left out of a draw is (1 - 1/20)^20.
    assert (weights == 0).mean() == pytest.approx((1 - 1 / 20) ** 20, abs=0.01)
