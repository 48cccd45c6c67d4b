"""Tables in parts: they come back as they were, a night writes what is new, and damage is named."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pandas as pd
import pytest

from infra.store import parts, records
from infra.store.keys import MANIFEST, PARTS, TABLE
from infra.store.memory import MemoryStore
from infra.store.records import Records
from validation.errors import ObjectMissing, RetrainError
from validation.records import Snapshot

ID = "0" * 24


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Levels of 4 rows, 16, 64 and 256."""
    monkeypatch.setattr(records, "WORTH_PARTS", 0)
    monkeypatch.setattr(parts, "FANOUT", 4)
    monkeypatch.setattr(parts, "MOST", 4**4)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def table(values: dict[str, int]) -> pd.DataFrame:
    """A row for each key, sorted by key; the values of some are missing."""
    rows = sorted(values.items())
    return pd.DataFrame(
        {
            "key": pd.array([key for key, _ in rows], dtype="str"),
            "size": [value for _, value in rows],
            "share": [value / 3 if value % 5 else None for _, value in rows],
            "label": pd.array(["ä" if value % 2 else "" for _, value in rows], dtype="str"),
        }
    )


def cells(first: int, count: int) -> dict[str, int]:
    """New keys lie between the old ones, as those of a bucket do."""
    return {f"labeled/{number * 7919 % 100_003:06d}": number for number in range(first, first + count)}


def save(store: MemoryStore, values: dict[str, int], before: str | None = None) -> str:
    return Records(store).save_table(Snapshot, ID, "rows", table(values), by=["key"], before=before)


def comes_back(store: MemoryStore, key: str, values: dict[str, int]) -> None:
    pd.testing.assert_frame_equal(Records(store).load_table(key), table(values))


def nights(seed: int) -> Iterator[dict[str, int]]:
    """Cells come, go and change, few or many at once; once all go."""
    draw = random.Random(seed)
    values, known = cells(0, 500), 500
    for night in range(24):
        yield values
        values = {} if night == 16 else dict(values)
        for key in draw.sample(sorted(values), min(len(values), draw.choice([0, 0, 3, 200]))):
            if draw.random() < 0.5:
                del values[key]
            else:
                values[key] += 1_000_000
        new = draw.choice([0, 1, 5, 40, 400])
        values |= cells(known, new)
        known += new


@pytest.mark.parametrize("seed", range(2))
def test_every_night_comes_back_as_it_was_and_its_parts_stay_few(store: MemoryStore, seed: int) -> None:
    key, saved = None, []
    for values in nights(seed):
        key = save(store, values, key)
        saved.append((key, values))
        sizes = [part.rows for part in Records(store).load_manifest(key).parts]
        small = [size for size in sizes if size < parts.MOST]
        assert len(small) <= 4 * (parts.FANOUT - 1), sizes
        assert sum(sizes) <= len(values) / (1 - parts.GONE_SHARE) + 1
    for key, values in saved:
        comes_back(store, key, values)


def test_a_night_writes_what_is_new(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "FANOUT", 16)
    monkeypatch.setattr(parts, "MOST", 16**4)
    values = cells(0, 20_000)
    key = save(store, values)
    whole, written = len(store.get(next(info.key for info in store.list(PARTS)))), []
    for night in range(20):
        values = values | cells(20_000 + 200 * night, 200)
        more: dict[str, bytes] = {}
        key = Records(store).save_table(
            Snapshot, ID, "rows", table(values), by=["key"], before=key, keep=more.__setitem__
        )
        written.append(sum(map(len, more.values())))
    # A part of 200 rows and the list of parts; on one night 16 parts become one.
    assert sorted(written)[-2] < 0.05 * whole
    assert sum(written) / len(written) < 0.05 * whole
    comes_back(store, key, values)


def test_the_same_table_after_the_same_one_has_the_same_key(store: MemoryStore) -> None:
    first = save(store, cells(0, 300))
    assert save(store, cells(0, 300)) == first == save(store, cells(0, 300), first)
    later = save(store, cells(0, 310), first)
    assert later == save(store, cells(0, 310), first) != first
    shared = Records(store).load_manifest(first).part_keys() & Records(store).load_manifest(later).part_keys()
    assert shared == Records(store).load_manifest(first).part_keys()


def test_small_tables_and_those_of_before_are_in_one_file(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "WORTH_PARTS", 100)
    key = save(store, cells(0, 99))
    assert key.endswith(TABLE)
    comes_back(store, key, cells(0, 99))
    larger = save(store, cells(0, 100), key)
    assert larger.endswith(MANIFEST)
    comes_back(store, larger, cells(0, 100))


def test_equal_rows_and_other_columns_are_written_and_none_is_lost(store: MemoryStore) -> None:
    first = save(store, cells(0, 50))
    twice = pd.concat([table(cells(0, 50))] * 2).sort_values("key", kind="stable", ignore_index=True)
    for rows in (twice, twice.assign(size=twice["size"].astype("int32")), twice[["key", "label"]]):
        key = Records(store).save_table(Snapshot, ID, "rows", rows, by=["key"], before=first)
        pd.testing.assert_frame_equal(Records(store).load_table(key), rows)


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_part_is_named_and_the_next_table_does_without_it(store: MemoryStore, damage: str) -> None:
    first = save(store, cells(0, 300))
    second = save(store, cells(0, 310), first)
    broken = sorted(Records(store).load_manifest(first).part_keys())[0]
    data = store.get(broken)
    if damage == "gone":
        store.delete(broken)
    else:
        store.put(broken, data[:-1] if damage == "cut" else bytes([data[0] ^ 1]) + data[1:])
    for key in (first, second):
        with pytest.raises(RetrainError, match="is damaged") as caught:
            Records(store).load_table(key)
        assert key in caught.value.message
        assert broken in caught.value.message
    third = save(store, cells(0, 320), second)
    comes_back(store, third, cells(0, 320))
    # Made again as it was made first, the table has its parts again.
    assert save(store, cells(0, 300)) == first
    comes_back(store, first, cells(0, 300))
    assert store.get(broken) == data


def test_a_damaged_list_of_parts_is_named_and_the_next_table_is_written_whole(store: MemoryStore) -> None:
    key = save(store, cells(0, 300))
    data = store.get(key)
    for broken in (data[:-1], b"", data.replace(b'"rows":256', b'"rows":255')):
        assert broken != data
        store.put(key, broken)
        with pytest.raises(RetrainError, match="is damaged") as caught:
            Records(store).load_table(key)
        assert key in caught.value.message
        comes_back(store, save(store, cells(0, 310), key), cells(0, 310))
    store.delete(key)
    with pytest.raises(ObjectMissing):
        Records(store).load_table(key)
    comes_back(store, save(store, cells(0, 310), key), cells(0, 310))
