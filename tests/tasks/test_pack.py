"""Pack: the pixels are those that prediction would make, and a pack is made again wherever it is not whole."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tasks.context import Context
from tasks.holdings import load_side
from tasks.pack import load_pack, pack
from tasks.pull import pull
from tasks.split import split
from tasks.validate import validate
from tests.builders import CountingStore, context_over, synthetic_cells, with_settings
from validation.digest import sha256
from validation.errors import ObjectMissing, RetrainError
from validation.images import decode, to_square
from validation.records import POSITIVE, SideName, Split

CELLS = synthetic_cells(patients=20)


pytestmark = pytest.mark.usefixtures("no_expectations")


@pytest.fixture
def store() -> CountingStore:
    return CountingStore(CELLS)


@pytest.fixture
def context(store: CountingStore, home: Path) -> Context:
    return context_over(store, home)


@pytest.fixture
def divided(context: Context) -> Split:
    return split(context, validate(context, pull(context)))


def test_every_row_is_the_square_that_a_prediction_would_see(context: Context, divided: Split) -> None:
    made = pack(context, divided)
    array = load_pack(context, made)
    keys = context.records.load_table(divided.table)["key"]
    assert array.shape == (len(CELLS), made.side, made.side, 3)
    assert array.dtype == np.uint8
    for row, key in zip(array, keys, strict=True):
        np.testing.assert_array_equal(row, to_square(decode(CELLS[key], context.settings.data), made.side))
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0


def test_a_pack_that_is_there_is_not_made_again(
    context: Context, divided: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pack(context, divided)
    monkeypatch.setattr("tasks.pack.decode", lambda *_: pytest.fail("decoded again"))
    assert pack(context, divided) == first


def test_another_machine_makes_the_same_pack(context: Context, divided: Split, tmp_path: Path) -> None:
    first = pack(context, divided)
    other = context_over(context.store, tmp_path / "other")
    assert pack(other, divided) == first
    assert other.workspace.pack_path(first.id).read_bytes() == context.workspace.pack_path(first.id).read_bytes()


@pytest.mark.parametrize("harm", ["missing", "torn", "one bit"])
def test_a_damaged_pack_is_made_again(harm: str, context: Context, divided: Split) -> None:
    made = pack(context, divided)
    path = context.workspace.pack_path(made.id)
    whole = path.read_bytes()
    if harm == "missing":
        path.unlink()
    elif harm == "torn":
        path.write_bytes(whole[:1000])
    else:
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert pack(context, divided) == made
    assert path.read_bytes() == whole
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_missing_cells_are_fetched_again(context: Context, store: CountingStore, divided: Split) -> None:
    missing = sorted(CELLS)[:3]
    for key in missing:
        context.workspace.object_path(sha256(CELLS[key])).unlink()
    store.fetched.clear()
    pack(context, divided)
    assert store.fetched == dict.fromkeys(missing, 1)


def test_cells_that_are_nowhere_any_more_are_named(context: Context, store: CountingStore, divided: Split) -> None:
    key = sorted(CELLS)[0]
    del store.objects[key]
    shutil.rmtree(context.workspace.home / "cache")
    with pytest.raises(ObjectMissing) as caught:
        pack(context, divided)
    assert key in caught.value.message
    assert list((context.workspace.home / "cache" / "packs").iterdir()) == []


def test_another_size_is_another_pack(context: Context, divided: Split) -> None:
    first = pack(context, divided)
    other = with_settings(context, training={"side": 24})
    second = pack(other, divided)
    assert second.id != first.id
    assert load_pack(other, second).shape[1:] == (24, 24, 3)
    assert load_pack(context, first).shape[1:] == (16, 16, 3)


def test_other_pixels_than_recorded_are_an_error(context: Context, divided: Split) -> None:
    made = pack(context, divided)
    context.records.save(made.model_copy(update={"pixels": "0" * 64}), made.id)
    with pytest.raises(RetrainError, match="other pixels than recorded") as caught:
        pack(context, divided)
    assert caught.value.hint


def test_sides_are_their_rows_of_table_and_array(context: Context, divided: Split) -> None:
    made = pack(context, divided)
    table = context.records.load_table(divided.table)
    names: tuple[SideName, ...] = ("train", "validation", "holdout")
    for name in names:
        side, rows = load_side(context, divided, made, name), table[table["side"] == name]
        assert side.keys == tuple(rows["key"])
        assert list(side.labels) == list(rows["label"] == POSITIVE)
        assert side.patients_count == rows["patient"].nunique()
        expected = [to_square(decode(CELLS[key], context.settings.data), made.side) for key in side.keys]
        np.testing.assert_array_equal(side.images, expected)
