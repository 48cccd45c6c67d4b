"""The temperature of a model's logits."""

from __future__ import annotations

import numpy as np
import pytest

from validation.statistics.calibration import calibrated_loss, temperature_of


def drawn(cells: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return logits that mean what they say, and labels drawn by them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, cells)
    return logits, rng.random(cells) < 1 / (1 + np.exp(-logits))


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_it_finds_by_how_much_a_model_is_too_sure(factor: float) -> None:
    logits, labels = drawn(20_000, 1)
    assert temperature_of(logits * factor, labels) == pytest.approx(factor, rel=0.05)


def test_the_loss_does_not_depend_on_how_sure_the_model_is() -> None:
    logits, labels = drawn(2_000, 2)
    (loss, _), (surer, temperature) = calibrated_loss(logits, labels), calibrated_loss(logits * 3, labels)
    assert surer == pytest.approx(loss, rel=1e-4)
    plain = float(np.mean(np.logaddexp(0, logits * 3) - labels * logits * 3))
    assert surer < plain
    assert temperature == pytest.approx(3, rel=0.1)


def test_being_right_about_a_few_cells_makes_no_model_certain() -> None:
    labels = np.array([True, False] * 3)
    temperature = temperature_of(np.where(labels, 1.0, -1.0), labels)
    assert 1 / (1 + np.exp(-1 / temperature)) == pytest.approx(4 / 5, abs=0.01)  # (3 + 1) / (3 + 2)


def test_one_class_teaches_nothing() -> None:
    assert temperature_of(np.array([3.0, -2.0]), np.array([True, True])) == 1.0
