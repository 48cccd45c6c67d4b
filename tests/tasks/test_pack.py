"""Pack: the pixels are those that prediction would make, and a pack is made again wherever it is not whole."""

from __future__ import annotations

import errno
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from tasks.cells.cell_data import load_cells
from tasks.cells.packing import load_pack, pixels_digest
from tasks.context import Context
from tasks.pack import pack
from tasks.pull import pull
from tasks.split import split
from tasks.validate import validate
from tests.builders import CountingStore, context_over, synthetic_cells, with_settings
from validation.digest import sha256
from validation.errors import ObjectMissing, RetrainError
from validation.images.decode import RGB, decode, to_square
from validation.images.limits import Limits
from validation.records import POSITIVE, Split

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


def test_the_slice_size_changes_no_pixel(context: Context, divided: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    made = pack(context, divided)
    whole = context.workspace.pack_path(made.id).read_bytes()
    context.workspace.pack_path(made.id).unlink()
    for shelf in shelf_files(context):
        shelf.unlink()
    monkeypatch.setattr("tasks.cells.packing.SLICE", 25)
    monkeypatch.setattr("tasks.cells.packing.BATCH", 10)
    assert len(CELLS) % 25
    assert pack(context, divided) == made
    assert context.workspace.pack_path(made.id).read_bytes() == whole


def test_a_pack_that_is_there_is_not_made_again(
    context: Context, divided: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pack(context, divided)
    monkeypatch.setattr("tasks.cells.accepted.decode", lambda *_: pytest.fail("decoded again"))
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


def test_lost_cells_are_named(context: Context, store: CountingStore, divided: Split) -> None:
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


def test_cells_are_rows_of_table_and_array(context: Context, divided: Split) -> None:
    made = pack(context, divided)
    table = context.records.load_table(divided.table)
    cells = load_cells(context, divided, made)
    for part in (cells, cells.training(1), cells.tuning(1), cells.judged_by([1])):
        rows = table.iloc[part.rows]
        assert len(rows) == len(part) > 0
        assert list(part.keys) == list(rows["key"])
        assert list(part.labels) == list(rows["label"] == POSITIVE)
        assert part.patients_count == rows["patient"].nunique()
        expected = [to_square(decode(CELLS[key], context.settings.data), made.side) for key in part.keys]
        assert part.images.shape == np.array(expected).shape
        np.testing.assert_array_equal(part.images[:], expected)
        np.testing.assert_array_equal(part.images[np.array([1, 0])], [expected[1], expected[0]])
    roles = [set(part.rows) for part in (cells.training(1), cells.tuning(1), cells.judged_by([1]))]
    assert set.union(*roles) == set(cells.rows)
    assert sum(map(len, roles)) == len(cells)


# --- kept by content ---------------------------------------------------------------------------------------------


def shelf_files(context: Context) -> list[Path]:
    return sorted((context.workspace.home / "cache" / "cells").rglob("*.bin"))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What is decoded from now on."""
    seen: list[bytes] = []

    def watched(data: bytes, limits: Limits) -> RGB:
        seen.append(data)
        return decode(data, limits)

    monkeypatch.setattr("tasks.cells.accepted.decode", watched)
    return seen


def test_a_night_decodes_only_what_is_new(
    context: Context, store: CountingStore, divided: Split, decoded: list[bytes]
) -> None:
    pack(context, divided)
    assert sorted(decoded) == sorted(CELLS.values())
    decoded.clear()
    new = synthetic_cells(night=2, patients=20)
    store.objects |= new
    later = split(context, validate(context, pull(context)))
    made = pack(context, later)
    assert sorted(decoded) == sorted(new.values())
    objects = CELLS | new
    for row, key in zip(load_pack(context, made), context.records.load_table(later.table)["key"], strict=True):
        np.testing.assert_array_equal(row, to_square(decode(objects[key], context.settings.data), made.side))


def test_a_night_hashes_only_what_is_new_and_comes_to_the_digest_of_the_whole_file(
    context: Context, store: CountingStore, divided: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(context, divided)
    new = synthetic_cells(night=2, patients=20)
    store.objects |= new
    later = split(context, validate(context, pull(context)))
    hashed: list[bool] = []
    whole, row_bytes = hashlib.sha256, context.settings.training.side**2 * 3

    def counted(data: bytes = b"") -> object:
        hashed.append(len(data) == row_bytes)
        return whole(data)

    with monkeypatch.context() as patch:
        patch.setattr("tasks.cells.packing.hashlib.sha256", counted)
        made = pack(context, later)
    # Once for the pack's digest, once for the cache.
    assert sum(hashed) == 2 * len(new)
    path = context.workspace.pack_path(made.id)
    assert pixels_digest(path, made.cells, made.side) == made.pixels
    assert pixels_digest(path, made.cells - 1, made.side) == pixels_digest(path, made.cells, 24) == ""


@pytest.mark.parametrize("harm", ["rows torn", "entry torn", "rows rotted", "entry rotted", "rows lost", "index lost"])
def test_rows_that_are_not_whole_are_made_again(
    harm: str, context: Context, divided: Split, decoded: list[bytes]
) -> None:
    made = pack(context, divided)
    path = context.workspace.pack_path(made.id)
    whole = path.read_bytes()
    index, rows = shelf_files(context)
    if harm == "rows torn":
        rows.write_bytes(rows.read_bytes()[:-100])
    elif harm == "entry torn":
        index.write_bytes(index.read_bytes()[:-5])
    elif harm == "rows rotted":
        rows.write_bytes(bytes([rows.read_bytes()[0] ^ 1]) + rows.read_bytes()[1:])
    elif harm == "entry rotted":  # in the digest of the last row's pixels
        index.write_bytes(index.read_bytes()[:-1] + bytes([index.read_bytes()[-1] ^ 1]))
    else:
        (rows if harm == "rows lost" else index).write_bytes(b"")
    for expected in ({"rows lost": len(CELLS), "index lost": len(CELLS)}.get(harm, 1), 0):
        path.unlink()
        decoded.clear()
        assert pack(context, divided) == made
        assert path.read_bytes() == whole
        assert len(decoded) == expected


def test_a_full_disk_is_reported(context: Context, divided: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(RetrainError, match="No space left") as caught:
        pack(context, divided)
    assert "free some space" in caught.value.hint
    assert list((context.workspace.home / "cache" / "packs").iterdir()) == []
