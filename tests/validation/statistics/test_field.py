"""The field's alarm: quiet while the promise is kept, raised when it cannot have been."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from validation.statistics.field import BETS, LEVEL, PATIENTS_A_YEAR, summarise_field
from validation.statistics.rates import rate_interval


def tallies(patients: int, seed: int, sensitivity: float = 0.95, specificity: float = 0.97) -> Any:
    """Patients of unequal size, a quarter healthy, whose rates vary about the given ones; float [patients, 4]."""
    rng = np.random.default_rng(seed)
    cells = np.clip(rng.lognormal(3.0, 0.9, (patients, 2)), 2, 300).astype(int)
    cells[rng.random(patients) < 0.25, 0] = 0
    rates = [rng.beta(30 * rate, 30 * (1 - rate), patients) for rate in (sensitivity, specificity)]
    right = [rng.binomial(cells[:, side], rates[side]) for side in (0, 1)]
    return np.stack([right[0], cells[:, 0], right[1], cells[:, 1]], axis=1).astype(float)


def test_rates_are_those_of_all_cells_and_have_their_intervals() -> None:
    promised, found = tallies(80, 1), tallies(50, 2)
    summary = summarise_field(promised, found)
    assert summary.patients == 50
    assert summary.cells == found[:, [1, 3]].sum()
    assert summary.sensitivity.found == rate_interval(found[:, 0], found[:, 1], 0.95)
    assert summary.specificity.promised == rate_interval(promised[:, 2], promised[:, 3], 0.95)
    balanced = summary.balanced_accuracy
    assert balanced.found is not None
    assert balanced.found.value == pytest.approx(
        (found[:, 0].sum() / found[:, 1].sum() + found[:, 2].sum() / found[:, 3].sum()) / 2
    )
    assert balanced.alarm is None


def test_a_kept_promise_raises_no_alarm_in_nineteen_years_of_twenty() -> None:
    alarms = sum(summarise_field(tallies(100, 2 * n), tallies(500, 2 * n + 1)).alarm for n in range(40))
    assert alarms <= 2


@pytest.mark.parametrize(
    ("rates", "metric"), [({"sensitivity": 0.85}, "sensitivity"), ({"specificity": 0.88}, "specificity")]
)
def test_a_drop_is_noticed_in_the_rate_that_drops(rates: dict[str, float], metric: str) -> None:
    summary = summarise_field(tallies(140, 1), tallies(400, 2, **rates))
    other = summary.specificity if metric == "sensitivity" else summary.sensitivity
    dropped = getattr(summary, metric)
    assert summary.alarm
    assert dropped.alarm is not None
    assert 10 < dropped.alarm < 300
    assert dropped.evidence == 1
    assert other.alarm is None
    assert other.evidence < 1


def test_a_drop_after_many_good_patients_is_noticed_too() -> None:
    field = np.concatenate([tallies(300, 3), tallies(300, 4, sensitivity=0.8)])
    alarm = summarise_field(tallies(140, 1), field).sensitivity.alarm
    assert alarm is not None
    assert 300 < alarm < 450


def test_an_alarm_stays_whatever_comes_after_it() -> None:
    bad, good = tallies(200, 2, sensitivity=0.8), tallies(600, 3, sensitivity=0.99)
    promised = tallies(140, 1)
    first = summarise_field(promised, bad).sensitivity
    later = summarise_field(promised, np.concatenate([bad, good])).sensitivity
    assert first.alarm is not None
    assert (later.alarm, later.evidence) == (first.alarm, first.evidence)


def test_a_rate_that_was_never_promised_raises_no_alarm() -> None:
    promised = tallies(80, 1)
    promised[:, :2] = 0
    summary = summarise_field(promised, tallies(200, 2, sensitivity=0.1))
    assert (summary.sensitivity.promised, summary.sensitivity.evidence, summary.alarm) == (None, 0.0, False)


@pytest.mark.parametrize("empty", [np.zeros((0, 4)), np.zeros((5, 4))])
def test_a_field_without_cells_has_no_rates(empty: Any) -> None:
    summary = summarise_field(tallies(80, 1), empty)
    assert (summary.patients, summary.cells, summary.alarm) == (len(empty), 0, False)
    assert summary.sensitivity.found is summary.balanced_accuracy.found is None
    assert 0 <= summary.sensitivity.evidence < 1


def test_an_alarm_is_what_the_bets_come_to_by_hand() -> None:
    """Every patient has as many cells as those promised, so each weighs 1."""
    promised = np.tile([19.0, 20.0, 20.0, 20.0], (60, 1))
    field = np.tile([14.0, 20.0, 20.0, 20.0], (30, 1))
    bound = rate_interval(np.full(60, 1.0), np.full(60, 20.0), 0.9)
    assert bound is not None
    step = 1 + BETS / bound.high * (0.3 - bound.high)
    alarm = None
    for n in range(1, 31):
        later = sum(step ** (n - k) for k in range(n)) / PATIENTS_A_YEAR
        if alarm is None and np.mean(step**n + later) / 2 >= 1 / LEVEL:
            alarm = n
    assert summarise_field(promised, field).sensitivity.alarm == alarm is not None


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.integers(0, 10_000), st.integers(1, 60), st.floats(0.5, 1))
def test_worse_patients_are_no_less_evidence(seed: int, patients: int, rate: float) -> None:
    promised, field = tallies(60, seed), tallies(patients, seed + 1)
    worse = field.copy()
    worse[:, 0] = np.floor(worse[:, 0] * rate)
    assert (
        summarise_field(promised, worse).sensitivity.evidence >= summarise_field(promised, field).sensitivity.evidence
    )
