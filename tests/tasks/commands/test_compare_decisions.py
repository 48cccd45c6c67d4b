"""Two decisions compared: only on cells that both judged, paired by patient, and only where the evidence is whole."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tasks.commands.compare_decisions import LEVEL, compare_decisions
from tasks.context import Context
from tasks.judging.evidence import counts_digest, judged_digest
from tests.builders import NOON, CountingStore, context_over, made_up_decision
from tests.tasks.test_decide import evaluation
from validation.digest import digest
from validation.errors import NotReproduced, ObjectMissing, UsageError
from validation.patients import fold_of
from validation.records import Evaluation, Retired, Verdict
from validation.statistics.metrics import Scored, compare

pytestmark = pytest.mark.thorough

CELLS = 20  # of each patient, half of them infected
BEFORE, AFTER, NO_LOOK = "a" * 24, "b" * 24, "c" * 24


def predictions(patients: range, *, right: float, seed: int, relabelled: int = 0) -> pd.DataFrame:
    """Return a challenger's table: probabilities on the right side of 0.5 for a share of the cells."""
    rng = np.random.default_rng(seed)
    rows: list[tuple[str, str, str, int, int, float]] = []
    for patient in patients:
        for cell in range(CELLS):
            label, name = cell % 2, f"P{patient}"
            called = label if rng.random() < right else 1 - label
            shown = 1 - label if len(rows) < relabelled else label
            rows.append(
                (f"key {patient} {cell}", digest(patient, cell), name, fold_of(name), shown, 0.2 + 0.6 * called)
            )
    return pd.DataFrame(rows, columns=["key", "sha256", "patient", "fold", "label", "challenger"])


def judged(
    context: Context, decision: str, table: pd.DataFrame, *, day: int, counted: pd.DataFrame | None = None
) -> None:
    """Store a decision whose evaluation rests on ``table``, though ``counted`` was judged where that is given."""
    seen = table if counted is None else counted
    made = evaluation().model_copy(
        update={
            "id": f"evaluation of {decision}",
            "challenger_threshold": 0.5,
            "predictions": context.records.save_table(Evaluation, decision, "predictions", table),
            "judged": judged_digest(seen),
            "counts": {"challenger": counts_digest(seen, "challenger", 0.5)},
        }
    )
    context.records.save(made, made.id)
    kept = made_up_decision(decision, verdict=Verdict.KEPT)
    kept = kept.model_copy(update={"evaluation": made.id, "decided_at": NOON + timedelta(days=day)})
    context.records.save(kept, decision)


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return context_over(CountingStore(), tmp_path)


def test_the_cells_that_both_judged_are_paired_by_patient(context: Context) -> None:
    earlier = predictions(range(30), right=0.85, seed=1)
    later = predictions(range(5, 40), right=0.95, seed=2)
    judged(context, BEFORE, earlier, day=1)
    judged(context, AFTER, later.sample(frac=1, random_state=3), day=2)
    found = compare_decisions(context, AFTER[:6], BEFORE[:6])
    assert (found.earlier, found.later) == (BEFORE, AFTER)
    assert (found.patients, found.cells, found.left_out) == (25, 25 * CELLS, 15 * CELLS)
    # The gate's own statistics, on the same cells in the order of one table.
    both = earlier.merge(later, on="sha256", suffixes=("", "_later"))
    codes = pd.factorize(both["patient"], sort=True)[0]
    scored = [
        Scored(both["label"].to_numpy() == 1, both[name].to_numpy(float), codes, 0.5)
        for name in ("challenger_later", "challenger")
    ]
    assert found.differences == compare(*scored, resamples=context.settings.gate.resamples, level=LEVEL)
    assert found.differences["balanced_accuracy"].low > 0
    values = found.metrics["accuracy"]
    assert all(values)
    assert [value.level for value in found.differences.values()] == [0.95] * len(found.differences)


def test_a_cell_under_another_label_is_left_out(context: Context) -> None:
    judged(context, BEFORE, predictions(range(20), right=0.9, seed=1), day=1)
    judged(context, AFTER, predictions(range(20), right=0.9, seed=1, relabelled=7), day=2)
    found = compare_decisions(context, BEFORE, AFTER)
    assert (found.cells, found.left_out) == (20 * CELLS - 7, 14)
    assert {value.value for value in found.differences.values()} == {0.0}


def test_what_cannot_be_paired_is_refused(context: Context) -> None:
    judged(context, BEFORE, predictions(range(10), right=0.9, seed=1), day=1)
    judged(context, AFTER, predictions(range(10, 20), right=0.9, seed=1), day=2)
    context.records.save(made_up_decision(NO_LOOK, verdict=Verdict.KEPT), NO_LOOK)
    for pair, problem in (
        ((BEFORE, AFTER), "no cell in common"),
        ((BEFORE, BEFORE), "both are decision"),
        ((BEFORE, NO_LOOK), "took no look"),
    ):
        with pytest.raises(UsageError, match=problem):
            compare_decisions(context, *pair)
    context.records.save(Retired(decision=BEFORE, why="old", at=NOON), BEFORE)
    with pytest.raises(ObjectMissing, match="was retired"):
        compare_decisions(context, BEFORE, AFTER)


@pytest.mark.parametrize("column", ["label", "challenger"])
def test_predictions_that_were_changed_afterwards_are_refused(context: Context, column: str) -> None:
    table = predictions(range(10), right=0.9, seed=1)
    judged(context, BEFORE, table, day=1)
    judged(context, AFTER, table.assign(**{column: 1 - table[column]}), day=2, counted=table)
    with pytest.raises(NotReproduced, match="not those that were judged"):
        compare_decisions(context, BEFORE, AFTER)
