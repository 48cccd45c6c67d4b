"""Split: a patient is on one side, for ever."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tasks.context import Context
from tasks.pull import pull
from tasks.split import split
from tasks.validate import validate
from tests.builders import CountingStore, context_over, plain_cells, with_settings
from validation.records import NEGATIVE, Split

FIRST = plain_cells(40, 2)
SIDES = ("train", "validation", "holdout")


pytestmark = pytest.mark.usefixtures("no_expectations")


@pytest.fixture
def store() -> CountingStore:
    return CountingStore(FIRST)


@pytest.fixture
def context(store: CountingStore, home: Path) -> Context:
    return context_over(store, home)


def divided(context: Context) -> Split:
    return split(context, validate(context, pull(context)))


def rows(context: Context, result: Split) -> pd.DataFrame:
    return context.records.load_table(result.table)


def sides(table: pd.DataFrame) -> dict[str, str]:
    """Patient -> side; fails when a patient is on two."""
    assert (table.groupby("patient")["side"].nunique() == 1).all()
    return dict(zip(table["patient"], table["side"], strict=True))


def test_every_cell_is_on_one_side_and_every_side_is_one_run_of_rows(context: Context) -> None:
    result = divided(context)
    table = rows(context, result)
    assert sorted(table["key"]) == sorted(FIRST)
    assert set(table["side"]) == set(SIDES)
    for side in SIDES:
        where = table.index[table["side"] == side]
        assert list(where) == list(range(where[0], where[-1] + 1))
        assert table.loc[where, "sha256"].is_monotonic_increasing


def test_counts_are_those_of_the_table(context: Context) -> None:
    result = divided(context)
    table = rows(context, result)
    for side, count in zip(SIDES, (result.train, result.validation_side, result.holdout), strict=True):
        side_rows = table[table["side"] == side]
        assert count.cells == len(side_rows)
        assert count.negative == (side_rows["label"] == NEGATIVE).sum()
        assert count.patients == side_rows["patient"].nunique()
    assert 20 <= result.train.patients <= 36


def test_no_patient_ever_changes_side(context: Context, store: CountingStore) -> None:
    before = sides(rows(context, divided(context)))
    # More cells of known patients, new patients, and some that are gone.
    store.objects |= plain_cells(40, 4, seed=2)
    store.objects |= plain_cells(30, 2, seed=3, first=41)
    for key in [key for key in store.objects if "C7P7" in key]:
        del store.objects[key]
    after = sides(rows(context, divided(context)))
    assert len(after) == 69
    assert {patient: side for patient, side in after.items() if patient in before} == {
        patient: side for patient, side in before.items() if patient != "C7P7"
    }


def test_cells_without_a_patient_are_trained_on_only(context: Context, store: CountingStore) -> None:
    cells = list(plain_cells(3, 2, seed=9, first=90).items())
    for number, (key, data) in enumerate(cells):
        store.objects[f"{key.rpartition('/')[0]}/scan_{number}.png"] = data
    result = divided(context)
    table = rows(context, result)
    assert set(table.loc[table["patient"] == "", "side"]) == {"train"}
    assert result.without_patient == len(cells)
    assert (
        result.train.patients == table.loc[(table["side"] == "train") & (table["patient"] != ""), "patient"].nunique()
    )


def test_the_same_cells_make_the_same_split(context: Context, store: CountingStore, tmp_path: Path) -> None:
    first = divided(context)
    assert divided(context) == first
    other = context_over(CountingStore(FIRST), tmp_path / "other")
    again = divided(other)
    assert again == first
    assert other.store.get(again.table) == store.get(first.table)


def test_another_generation_assigns_all_patients_again(context: Context) -> None:
    first = divided(context)
    other = with_settings(context, split={"generation": "g2"})
    second = divided(other)
    assert second.id != first.id
    assert second.generation == "g2"
    assert sides(rows(other, second)) != sides(rows(context, first))
