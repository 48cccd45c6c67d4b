"""What the gate's benchmarks count: many looks at once pass where the gate's own tests pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks import gate_methods
from benchmarks.coverage import Scores
from benchmarks.field import alarms
from benchmarks.gate_years import FLIPS, NEW, NULLS, OLD, POWER, Lines, not_worse, superior, walk
from benchmarks.populations import equal_models
from validation.gate import level_of_look
from validation.rules import GateRules
from validation.statistics.paired_tests import Difference, flipped_bounds, mean_of, null_variance_bounds, of_shares

RULES = GateRules()


def drawn(patients: int, seed: int, case: str) -> tuple[Any, Any]:
    """Right calls more than the champion's and cells, float [40, 2, patients] each."""
    sets = equal_models().draw(np.random.default_rng(seed), 40, patients, case)
    cells = np.stack([sets.positives, sets.negatives], axis=1).astype(float)
    return np.stack(sets.challenger, axis=1) - np.stack(sets.champion, axis=1).astype(float), cells


def differences_of(gained: Any, cells: Any) -> tuple[Difference, Difference, Difference]:
    parts = [of_shares(gained[side], cells[side]) for side in (0, 1)]
    both = mean_of(parts[0], parts[1], (cells[0] > 0, cells[1] > 0))
    assert parts[0] is not None
    assert parts[1] is not None
    assert both is not None
    return parts[0], parts[1], both


@pytest.mark.parametrize(("patients", "case"), [(12, "+4"), (60, "+1"), (60, "+0"), (140, "+0")])
def test_many_looks_at_once_pass_where_the_gates_own_tests_pass(patients: int, case: str) -> None:
    gained, cells = drawn(patients, patients, case)
    by_table = not_worse(gained, cells, NEW), superior(gained, cells)
    level = level_of_look(RULES)
    for look, (more, of) in enumerate(zip(gained, cells, strict=True)):
        sensitivity, specificity, both = differences_of(more, of)
        margins = ((sensitivity, RULES.sensitivity_margin), (specificity, RULES.specificity_margin))
        passes = all(null_variance_bounds(one, level=level)[0] > -margin for one, margin in margins)
        assert by_table[0][look] == passes
        assert by_table[1][look] == (flipped_bounds(both, flips=FLIPS, level=level)[0] > 0)


def test_single_tests_are_those_of_the_gate() -> None:
    sets = equal_models().draw(np.random.default_rng(5), 60, 100, "+1")
    x, shares = gate_methods.sensitivity(sets, 0.01)
    found = gate_methods.capped(x, shares, 0.01)
    assert 0 < found.sum() < 60 or found.all()
    for look, passes in enumerate(found):
        difference = Difference(*(part[look][shares[look] > 0] for part in (x - 0.01 * shares, shares)))
        assert (null_variance_bounds(difference, level=level_of_look(RULES))[0] > -0.01) == passes


def test_the_old_design_judges_and_chooses_with_a_part_and_the_new_one_with_all() -> None:
    rng = np.random.default_rng(1)
    judges, tunes, fold = OLD.roles(rng, 100)
    assert (judges.sum(), tunes.sum(), (judges & tunes).sum(), fold.max()) == (15, 15, 0, 0)
    judges, tunes, fold = NEW.roles(rng, 1_000)
    assert judges.all()
    # Each of four members is tuned on an eighth: 1 - (7/8)^4.
    assert tunes.mean() == pytest.approx(0.414, abs=0.05)
    assert set(fold) == set(range(5))


def test_a_year_of_far_better_challengers_ends_with_a_promotion_and_one_of_equal_ones_rarely() -> None:
    def year(case: str, patients: int) -> dict[str, Any]:
        return walk(Lines(equal_models(), NEW, 15, patients, [1]), (NULLS | POWER)[case], creep=case == "creep")

    better, equal, creep = year("+4", 100), year("equal", 100), year("creep", 100)
    assert (better["promoted"] > 0).all()
    assert np.median(better["promoted"]) <= 3
    assert (equal["promoted"] > 0).sum() <= 3
    assert (equal["looks"] <= RULES.looks).all()
    # Only a second step counts, and it follows a first one.
    assert (creep["first"][creep["promoted"] > 0] < creep["promoted"][creep["promoted"] > 0]).all()


def test_the_calls_of_a_pair_are_on_the_same_cells_and_as_good_as_the_case_says() -> None:
    new, old = gate_methods.cells_of(equal_models(), np.random.default_rng(2), 400, "+2")
    assert (new.labels == old.labels).all()
    better, champion = (one.tallies.sum(axis=0) for one in (new, old))
    assert better[0] / better[1] - champion[0] / champion[1] == pytest.approx(0.02, abs=0.015)
    assert champion[2] / champion[3] == pytest.approx(equal_models().truth((0.0, 0.0))[1], abs=0.01)


def test_the_alarm_of_the_field_counts_from_the_drop() -> None:
    models = equal_models()
    found = alarms(models, 140, (0.0, -0.15), 300, 4)
    assert len(found) == 4
    assert all(0 < wait < 200 for wait in found)


def test_coverage_is_counted_against_the_populations_own_truth() -> None:
    scores = Scores("scores")
    rng = np.random.default_rng(1)
    names = {name for name, _, _ in scores.draw(rng, 30)}
    assert {"auc", "mcc", "accuracy", "difference of AUC"} <= names
    many = {name: (interval, truth) for name, interval, truth in scores.draw(rng, 300)}
    assert all(abs(interval.value - truth) < 0.04 for interval, truth in many.values())
