"""When the rate falls and when the fit ends, by made-up losses on tuning patients."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.models.schedule import Schedule

FALLING = [1.0 / epoch for epoch in range(1, 31)]
SCHEDULE = Schedule(epochs=20, cooldown=4, patience=3, warmup=2)


def test_while_the_loss_improves_it_runs_to_the_last_epoch() -> None:
    for ended in range(20):
        assert SCHEDULE.length(FALLING[:ended]) == 20
        assert not SCHEDULE.is_over(FALLING[:ended])
    assert SCHEDULE.is_over(FALLING[:20])


def test_without_a_lower_loss_for_as_long_as_patience_it_cools_down_and_is_over() -> None:
    losses = [*FALLING[:5], 0.3, 0.25, 0.21]
    assert SCHEDULE.length(losses[:7]) == 20
    assert SCHEDULE.length(losses) == 12
    assert not SCHEDULE.is_over([*losses, 0.1, 0.09, 0.08])
    assert SCHEDULE.is_over([*losses, 0.1, 0.09, 0.08, 0.07])


def test_a_lower_loss_once_it_cools_down_changes_nothing() -> None:
    losses = [*FALLING[:5], 0.3, 0.3, 0.3]
    assert SCHEDULE.length([*losses, 0.01]) == SCHEDULE.length(losses) == 12


def test_an_improvement_within_patience_resets_it() -> None:
    assert SCHEDULE.length([*FALLING[:5], 0.3, 0.3, 0.19, 0.3, 0.3]) == 20
    assert SCHEDULE.length([*FALLING[:5], 0.3, 0.3, 0.19, 0.3, 0.3, 0.3]) == 15


def test_losses_of_small_cells_are_ignored() -> None:
    schedule = Schedule(epochs=20, cooldown=4, patience=3, first=6)
    assert schedule.length([0.1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.6, 0.55, 0.5]) == 20
    assert schedule.length([0.1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.6, 0.7, 0.7, 0.7]) == 14


def test_the_rate_rises_stays_and_falls() -> None:
    rates = [SCHEDULE.rate(at, FALLING[: int(at)]) for at in np.arange(0, 20.01, 0.25)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[4] == pytest.approx(0.55)
    np.testing.assert_allclose(rates[8:65], 1)
    assert rates[72] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0)
    assert np.diff(rates[64:]).max() < 0


def test_when_it_falls_early_it_falls_as_it_would_have() -> None:
    flat = [*FALLING[:5], 0.3, 0.3, 0.3]
    early = [SCHEDULE.rate(at, [*flat, *([0.1] * 4)][: int(at)]) for at in np.arange(8, 12, 0.25)]
    late = [SCHEDULE.rate(at, FALLING[: int(at)]) for at in np.arange(16, 20, 0.25)]
    np.testing.assert_allclose(early, late)


def test_a_small_set_gets_as_much_more_of_everything() -> None:
    assert Schedule.scaled(48, 2.0, cooldown=4, patience=3, warmup=1.5) == Schedule(48, 8, 6, 3.0)
    assert Schedule.scaled(6, 0.25, cooldown=4, patience=3, warmup=2.0) == Schedule(6, 1, 1, 0.5)


@pytest.mark.parametrize(("epochs", "rises", "falls"), [(8, 2, 6), (4, 1, 3), (3, 0.75, 2), (1, 0.25, 1)])
def test_of_a_few_epochs_it_still_rises_before_it_falls(epochs: int, rises: float, falls: int) -> None:
    schedule = Schedule.scaled(epochs, 1.0, cooldown=6, patience=3, warmup=2.0)
    assert schedule == Schedule(epochs, falls, 3, rises)
    assert max(schedule.rate(at, FALLING[: int(at)]) for at in np.arange(0, epochs, 0.05)) > 0.8


@given(
    losses=st.lists(st.floats(0.01, 3), max_size=40),
    epochs=st.integers(1, 30),
    cooldown=st.integers(1, 8),
    patience=st.integers(1, 8),
    first=st.integers(0, 10),
)
def test_a_begun_cooldown_is_final(losses: list[float], epochs: int, cooldown: int, patience: int, first: int) -> None:
    schedule = Schedule.scaled(epochs, 1.0, cooldown=cooldown, patience=patience, first=first)
    decided = schedule.epochs
    for ended in range(len(losses) + 1):
        length = schedule.length(losses[:ended])
        assert min(ended, schedule.cooldown) <= length <= epochs
        if decided != schedule.epochs:
            assert length == decided
        elif length != schedule.epochs:
            assert length == ended + schedule.cooldown, "it falls from the next epoch on"
            decided = length
        assert 0 <= schedule.rate(ended, losses[:ended]) <= 1
