"""Records and tables in a store."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest

from infra.store.base import Store
from infra.store.folder import FolderStore
from infra.store.keys import latest_key, record_key
from infra.store.memory import MemoryStore
from infra.store.records import Records
from validation.errors import ObjectMissing, RetrainError
from validation.records import ApprovalRequest, Check, Snapshot, Split

SNAPSHOT = Snapshot(
    id="0123",
    parent=None,
    table="retraining/snapshots/0123.rows.parquet",
    objects=2,
    bytes=10,
    by_class={"Parasitized": 1, "Uninfected": 1},
    patients=1,
    without_patient=0,
    new=2,
    gone=0,
    created_at=datetime(2026, 1, 2, 3, 4, 5, 678900, UTC),
)
TABLE = pd.DataFrame(
    {"key": ["labeled/A/ä.png", "labeled/A/<b>.png"], "size": [1, 2], "share": [0.1, float("nan")], "label": ["A", ""]}
)


@pytest.fixture(params=["memory", "folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return MemoryStore() if request.param == "memory" else FolderStore(tmp_path)


def test_a_record_comes_back_equal(store: Store) -> None:
    records = Records(store)
    records.save(SNAPSHOT, SNAPSHOT.id)
    assert records.load(Snapshot, "0123") == SNAPSHOT
    assert records.find(Snapshot, "0123") == SNAPSHOT


@pytest.mark.parametrize("id_", ["none", "../snapshots/0123", "", "a\x00", "x" * 300])
def test_what_is_not_there_is_missing(store: Store, id_: str) -> None:
    Records(store).save(SNAPSHOT, SNAPSHOT.id)
    assert Records(store).find(Snapshot, id_) is None
    with pytest.raises(ObjectMissing):
        Records(store).load(Snapshot, id_)


def test_ids_are_those_of_the_kind_without_its_tables(store: Store) -> None:
    records = Records(store)
    for id_ in ("b", "a"):
        records.save(SNAPSHOT, id_)
        records.save_table(Snapshot, id_, "rows", TABLE)
    store.put("retraining/snapshots/a/deeper.json", b"{}")
    store.put("retraining/splits/other.json", b"{}")
    assert records.ids(Snapshot) == ["a", "b"]
    assert records.ids(Check) == []


@pytest.mark.parametrize("data", [b"", b"{", b"null", b"\xff\xfe", b'{"id": "0123"}', b'{"surprise": 1}'])
def test_a_damaged_record_is_named(store: Store, data: bytes) -> None:
    store.put(record_key("snapshots", "0123"), data)
    with pytest.raises(RetrainError, match=r"retraining/snapshots/0123\.json .* is damaged") as caught:
        Records(store).load(Snapshot, "0123")
    assert "makes it again" in caught.value.hint
    assert Records(store).find(Snapshot, "0123") is None
    with pytest.raises(RetrainError, match="is damaged"):
        Records(store).find(Snapshot, "0123", strict=True)
    store.put(record_key("approvals", "0123"), data)
    with pytest.raises(RetrainError, match="is damaged") as caught:
        Records(store).load(ApprovalRequest, "0123")
    assert caught.value.hint.startswith("nothing makes it again: restore it from a backup")


def test_the_same_table_makes_the_same_bytes(store: Store) -> None:
    records = Records(store)
    key = records.save_table(Snapshot, "0123", "rows", TABLE)
    first = store.get(key)
    assert records.save_table(Snapshot, "0123", "rows", TABLE.copy()) == key
    assert store.get(key) == first
    pd.testing.assert_frame_equal(records.load_table(key), TABLE)


def test_an_empty_table(store: Store) -> None:
    records = Records(store)
    key = records.save_table(Snapshot, "0123", "rows", TABLE.iloc[:0])
    assert list(records.load_table(key).columns) == list(TABLE.columns)
    assert records.load_table(key).empty


def test_of_two_machines_with_one_record_one_counts_with_its_tables(store: Store) -> None:
    mine, theirs = Records(store), Records(store)
    made = []
    # Both have written their tables before either writes its record.
    for records, table in ((mine, TABLE), (theirs, TABLE.assign(share=[0.1 + 1e-9, 0.2]))):
        made.append(SNAPSHOT.model_copy(update={"table": records.save_table(Snapshot, "0123", "rows", table)}))
    assert theirs.save_once(made[1], "0123") == made[1]
    assert mine.save_once(made[0], "0123") == made[1]
    assert mine.load(Snapshot, "0123") == made[1]
    assert [info.key for info in store.list("retraining/")] == [record_key("snapshots", "0123"), made[1].table]
    assert mine.load_table(made[1].table)["share"][1] == 0.2
    # One that is not whole does not count.
    store.put(made[1].table, b"PAR1")
    again = made[0].model_copy(update={"table": mine.save_table(Snapshot, "0123", "rows", TABLE)})
    assert mine.save_once(again, "0123") == again == mine.find_whole(Snapshot, "0123")


@pytest.mark.parametrize("cut", [0, 3, 100, -8])
def test_a_damaged_table_is_named(store: Store, cut: int) -> None:
    records = Records(store)
    key = records.save_table(Snapshot, "0123", "rows", TABLE)
    store.put(key, store.get(key)[:cut])
    with pytest.raises(RetrainError, match=r"0123\.rows-[0-9a-f]{12}\.parquet .* is damaged"):
        records.load_table(key)
    with pytest.raises(ObjectMissing):
        records.load_table("retraining/snapshots/none.parquet")


def test_a_pointer_moves(store: Store) -> None:
    records = Records(store)
    assert records.latest("snapshot", Snapshot) is None
    records.point("snapshot", SNAPSHOT)
    later = SNAPSHOT.model_copy(update={"id": "4567"})
    records.point("snapshot", later)
    assert records.latest("snapshot", Snapshot) == later
    store.put(latest_key("snapshot"), b"rubbish")
    with pytest.raises(RetrainError, match="is damaged"):
        records.latest("snapshot", Snapshot)
    with pytest.raises(RetrainError, match="is damaged"):
        records.latest("snapshot", Split)
