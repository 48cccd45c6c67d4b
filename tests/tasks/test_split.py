"""Split: a patient is in one fold for ever, whatever arrives, is renamed, moved, deleted or comes back."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.store.keys import ORIGINS
from tasks.context import Context
from tasks.pull import pull
from tasks.split import split
from tasks.validate import validate
from tests.builders import CountingStore, context_over, plain_cells
from validation.patients import FOLDS, NO_FOLD, fold_of, is_tuning
from validation.records import NEGATIVE, POSITIVE, Split, ValidationResult

FIRST = plain_cells(40, 2)

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


def named(cells: dict[str, bytes], old: str, new: str) -> dict[str, bytes]:
    """Return the cells of patient ``old``, filed under ``new``."""
    return {key.replace(f"/{old}", f"/{new}"): data for key, data in cells.items() if f"/{old}" in key}


def test_every_cell_is_in_the_fold_of_its_patient(context: Context) -> None:
    table = rows(context, divided(context))
    assert sorted(table["key"]) == sorted(FIRST)
    assert list(table["fold"]) == [fold_of(patient) for patient in table["patient"]]
    assert set(table["fold"]) == set(range(FOLDS))
    assert table["sha256"].is_monotonic_increasing


def test_counts_are_those_of_the_table(context: Context) -> None:
    result = divided(context)
    table = rows(context, result)
    for fold, count in enumerate(result.folds):
        own = table[table["fold"] == fold]
        assert count.cells == len(own)
        assert count.negative == (own["label"] == NEGATIVE).sum()
        assert count.patients == own["patient"].nunique()
    assert result.judging.patients == 40
    assert result.judging.cells == len(FIRST)


def test_cells_without_a_patient_are_in_no_fold(context: Context, store: CountingStore) -> None:
    cells = list(plain_cells(3, 2, seed=9, first=90).items())
    for number, (key, data) in enumerate(cells):
        store.objects[f"{key.rpartition('/')[0]}/scan_{number}.png"] = data
    result = divided(context)
    table = rows(context, result)
    assert set(table.loc[table["patient"] == "", "fold"]) == {NO_FOLD}
    assert result.without_patient == len(cells)
    assert result.judging.patients == 40


def test_a_patient_whose_cells_had_no_name_is_trained_on_only(context: Context, store: CountingStore) -> None:
    # Every member of every model so far has seen its cells: no member can ever be judged by it.
    for key, data in plain_cells(1, 4, seed=9, first=90).items():
        store.objects[f"{key.rpartition('/')[0]}/scan_{len(data)}_{key[-5]}.png"] = data
    divided(context)
    for key in [key for key in store.objects if "scan_" in key]:
        del store.objects[key]
    store.objects |= plain_cells(1, 4, seed=9, first=90) | named(plain_cells(1, 2, seed=8, first=90), "C90", "C90")
    table = rows(context, divided(context))
    own = table[table["patient"] == "C90P90"]
    assert len(own) >= 4
    assert set(own["fold"]) == {NO_FOLD}
    assert set(own["origin"]) == {""}


def test_a_renamed_patient_keeps_its_fold(context: Context, store: CountingStore) -> None:
    divided(context)
    old = "C7P7"
    new = next(name for name in map("X{}".format, range(100)) if fold_of(name) != fold_of(old))
    moved = named(store.objects, f"{old}Thin", f"{new}Thin")
    for key in [key for key in store.objects if f"/{old}Thin" in key]:
        del store.objects[key]
    store.objects |= moved
    result = divided(context)
    table = rows(context, result)
    assert result.crossed == 0
    assert set(table.loc[table["patient"] == new, "fold"]) == {fold_of(old)}
    # Later cells of the new name follow, though the old ones are gone.
    for key in moved:
        del store.objects[key]
    store.objects |= {key.replace("C7P7", new): data for key, data in plain_cells(1, 4, seed=5, first=7).items()}
    table = rows(context, divided(context))
    assert set(table.loc[table["patient"] == new, "fold"]) == {fold_of(old)}


@pytest.mark.parametrize("moment", ["before it is written", "when it is written"])
def test_two_machines_that_split_at_once_agree(
    moment: str, context: Context, store: CountingStore, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A patient comes under one name on this machine and, in the same hour, under another on the other one."""
    old = "C90P90"
    new = next(name for name in map("X{}".format, range(100)) if fold_of(name) != fold_of(old))
    cells = plain_cells(1, 4, seed=9, first=90)
    store.objects |= cells
    validation = validate(context, pull(context))
    for key in cells:
        del store.objects[key]
    store.objects |= {key.replace(old, new): data for key, data in cells.items()}
    other = context_over(store, home / "other")
    theirs = validate(other, pull(other))
    results: list[Split] = []
    plain, counted = store.put, list[str]()

    def put(key: str, data: bytes) -> None:
        if ORIGINS in key and not counted:
            counted.append(key)
            if moment == "when it is written":
                plain(key, data)
            results.append(split(other, theirs))
        plain(key, data)

    monkeypatch.setattr(store, "put", put)
    monkeypatch.setattr("tasks.judging.assignments.LONGEST_WAIT_SECONDS", 0)
    if moment == "when it is written":
        # Each sees the table of the other: both withdraw, one reads again first.
        monkeypatch.setattr("tasks.judging.assignments.time.sleep", lambda _: store.objects.pop(counted[0], None))
    results.append(split(context, validation))
    folds = [rows(context, result).query(f"patient in ['{old}', '{new}']")["fold"] for result in results]
    assert [len(fold) for fold in folds] == [4, 4]
    assert len({*folds[0], *folds[1]}) == 1
    assert [result.crossed for result in results] == [0, 0]


def test_a_cell_moved_to_another_known_patient_is_left_out_and_named(
    context: Context, store: CountingStore, caplog: pytest.LogCaptureFixture
) -> None:
    divided(context)
    key = next(key for key in store.objects if "/C7P7Thin" in key)
    moved = key.replace("C7P7", "C8P8").replace("cell_", "cell_9")
    store.objects[moved] = store.objects.pop(key)
    result = divided(context)
    assert result.crossed == 1
    assert result.crossings is not None
    (crossing,) = context.records.load_table(result.crossings).to_dict("records")
    assert (crossing["key"], crossing["origin"], crossing["before"]) == (moved, "C8P8", "C7P7")
    assert moved not in set(rows(context, result)["key"])


def test_the_same_cells_make_the_same_split(context: Context, store: CountingStore, tmp_path: Path) -> None:
    first = divided(context)
    assert divided(context) == first
    other = context_over(CountingStore(FIRST), tmp_path / "other")
    again = divided(other)
    assert again == first
    assert other.store.get(again.table) == store.get(first.table)


# A night's cells: pixels -> the name that they are filed under; the empty one is no patient.
NIGHTS = st.lists(
    st.dictionaries(st.integers(0, 11), st.sampled_from(["", "A", "B", "C", "D", "E"]), min_size=1, max_size=12),
    min_size=1,
    max_size=5,
)


def night_of(context: Context, number: int, cells: dict[int, str]) -> pd.DataFrame:
    """Return the split's table of a night whose validation accepted ``cells``."""
    id_ = f"{number:024d}"
    facts = pd.DataFrame(
        [
            {
                "key": f"{name}-{pixel}",
                "sha256": f"{pixel:02d}",
                "pixels": f"p{pixel}",
                "label": POSITIVE,
                "patient": name,
            }
            for pixel, name in sorted(cells.items())
        ]
    )
    validation = ValidationResult(
        id=id_, snapshot=id_, facts=context.records.save_table(ValidationResult, id_, "facts", facts), findings="",
        images=len(facts), accepted=len(facts), rejected=0, by_class={}, patients=0, without_patient=0, reasons={},
        examples=(), checks=(),
    )  # fmt: skip
    return rows(context, split(context, validation))


@pytest.mark.thorough
@settings(max_examples=60, deadline=None)
@given(nights=NIGHTS)
def test_no_member_of_any_night_is_judged_by_what_a_member_of_its_fold_has_seen(
    nights: list[dict[int, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever is renamed, moved, deleted or comes back: patients and pixels, over all nights together."""
    context = context_over(CountingStore({}), tmp_path_factory.mktemp("nights"))
    seen: dict[int, set[str]] = defaultdict(set)
    judged: dict[int, set[str]] = defaultdict(set)
    roles: dict[str, set[tuple[bool, ...]]] = defaultdict(set)
    for number, cells in enumerate(nights):
        table = night_of(context, number, cells)
        for row in table.to_dict("records"):
            pair = {f"pixels {row['pixels']}"} | ({f"patient {row['patient']}"} if row["patient"] else set())
            for member in range(FOLDS):
                if row["fold"] == member:
                    judged[member] |= pair if row["patient"] else set()
                else:
                    seen[member] |= pair
            roles[row["pixels"]].add((row["fold"], *(is_tuning(row["origin"], member) for member in range(FOLDS))))
    for member in range(FOLDS):
        assert not seen[member] & judged[member]
    assert all(len(found) == 1 for found in roles.values())
