"""What happens to a bucket between and during pulls, done to a folder and to S3 servers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from infra.store.base import Fetched, ObjectInfo, Store
from infra.store.folder import FolderStore
from infra.store.s3 import S3Store
from tasks.context import Context
from tasks.pull import pull
from tasks.snapshots.objects import read_object
from tests.builders import context_over, synthetic_cells
from validation.digest import sha256
from validation.records import NEGATIVE, POSITIVE, Snapshot

pytestmark = pytest.mark.thorough

CELLS = synthetic_cells(patients=4)
KEYS = sorted(CELLS)


@dataclass
class Place:
    """A store that the outside world writes to and deletes from, with what a pull sees of it."""

    store: Store
    context: Context

    def write(self, key: str, data: bytes) -> None:
        self.store.put(key, data)

    def delete(self, key: str) -> None:
        if isinstance(self.store, FolderStore):
            (self.store.root / key).unlink()
        else:
            assert isinstance(self.store, S3Store)
            self.store._client.delete_object(Bucket=self.store.bucket, Key=self.store._full(key))

    def rows(self, snapshot: Snapshot) -> pd.DataFrame:
        return self.context.records.load_table(snapshot.table).set_index("key")

    def assert_exact(self, snapshot: Snapshot) -> None:
        """Every row has size, ETag and SHA-256 of the bytes that are in the store now."""
        rows = self.rows(snapshot)
        listed = {info.key: info for info in self.store.list("labeled/")}
        assert list(rows.index) == sorted(listed)
        for key, info in listed.items():
            data = self.store.get(key)
            assert (rows.loc[key, "size"], rows.loc[key, "etag"]) == (info.size, info.etag)
            assert rows.loc[key, "sha256"] == sha256(data)
            assert read_object(self.context, key, sha256(data)) == data


@pytest.fixture
def folder_place(tmp_path: Path, home: Path) -> Place:
    """A folder only: for what does not depend on the store."""
    (tmp_path / "store").mkdir()
    return filled(FolderStore(tmp_path / "store"), home)


def filled(store: Store, home: Path) -> Place:
    for key, data in CELLS.items():
        store.put(key, data)
    return Place(store, context_over(store, home))


@pytest.fixture(
    params=["folder", pytest.param("moto", marks=pytest.mark.server), pytest.param("real", marks=pytest.mark.server)]
)
def place(request: pytest.FixtureRequest, tmp_path: Path, home: Path) -> Place:
    if request.param == "folder":
        (tmp_path / "store").mkdir()
        return filled(FolderStore(tmp_path / "store"), home)
    return filled(request.getfixturevalue("s3_store" if request.param == "moto" else "real_s3_store"), home)


def meanwhile(place: Place, monkeypatch: pytest.MonkeyPatch, name: str, happens: Callable[[], None]) -> None:
    """Let something happen once: in the listing (``list``), just before (``fetch``) or after a read (``read``)."""
    store, waiting = place.store, [happens]
    listing, fetch = store.list, store.fetch

    def happen() -> None:
        if waiting:
            waiting.pop()()

    def list_(prefix: str) -> Iterator[ObjectInfo]:
        for number, info in enumerate(listing(prefix)):
            if name == "list" and number == 3:
                happen()
            yield info

    def fetch_(key: str) -> Fetched:
        if name == "fetch" and key == KEYS[-1]:
            happen()
        fetched = fetch(key)
        if name == "read" and key == KEYS[-1]:
            happen()
        return fetched

    monkeypatch.setattr(store, "list", list_)
    monkeypatch.setattr(store, "fetch", fetch_)


def noted_fetches(place: Place, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that fills with the keys of what is read from now on."""
    fetched: list[str] = []
    fetch = place.store.fetch

    def noting(key: str) -> Fetched:
        fetched.append(key)
        return fetch(key)

    monkeypatch.setattr(place.store, "fetch", noting)
    return fetched


def test_two_pulls_give_the_same_snapshot_on_any_machine(place: Place, tmp_path: Path) -> None:
    first = pull(place.context)
    place.assert_exact(first)
    assert pull(place.context) == first
    other_machine = context_over(place.store, tmp_path / "another machine")
    assert pull(other_machine) == first


def test_an_overwritten_object(place: Place) -> None:
    first = pull(place.context)
    place.write(KEYS[0], CELLS[KEYS[1]] + b"more")
    second = pull(place.context)
    place.assert_exact(second)
    assert (second.parent, second.new, second.gone) == (first.id, 1, 0)
    assert place.rows(first).loc[KEYS[0], "sha256"] == sha256(CELLS[KEYS[0]])


def test_an_object_overwritten_by_as_many_bytes(place: Place) -> None:
    pull(place.context)
    place.write(KEYS[0], bytes(len(CELLS[KEYS[0]])))
    place.assert_exact(pull(place.context))


def test_a_renamed_object_and_one_moved_to_the_other_class(place: Place) -> None:
    first = pull(place.context)
    positive = [key for key in KEYS if f"/{POSITIVE}/" in key]
    place.write(positive[0].replace(".png", " (2).png"), CELLS[positive[0]])
    place.write(positive[1].replace(POSITIVE, NEGATIVE), CELLS[positive[1]])
    for key in positive[:2]:
        place.delete(key)
    second = pull(place.context)
    place.assert_exact(second)
    assert (second.objects, second.new, second.gone) == (first.objects, 2, 2)
    assert second.by_class[NEGATIVE] == first.by_class[NEGATIVE] + 1


def test_a_deleted_object_and_its_restored_bytes(place: Place) -> None:
    first = pull(place.context)
    place.delete(KEYS[0])
    second = pull(place.context)
    place.assert_exact(second)
    assert (second.objects, second.gone) == (len(CELLS) - 1, 1)
    place.write(KEYS[0], CELLS[KEYS[0]])
    third = pull(place.context)
    assert third == first
    assert set(place.rows(third).index) == set(KEYS)
    assert read_object(place.context, KEYS[0], sha256(CELLS[KEYS[0]])) == CELLS[KEYS[0]]


def test_an_object_that_appears_while_the_listing_runs(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    meanwhile(place, monkeypatch, "list", lambda: place.write(f"labeled/{NEGATIVE}/AAA_thin_1.png", CELLS[KEYS[0]]))
    pull(place.context)
    place.assert_exact(pull(place.context))  # seen by the first or not: the next one has it


@pytest.mark.parametrize("moment", ["list", "fetch"])
def test_an_object_that_is_deleted_while_the_pull_runs(
    place: Place, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    meanwhile(place, monkeypatch, moment, lambda: place.delete(KEYS[-1]))
    snapshot = pull(place.context)
    place.assert_exact(snapshot)
    assert snapshot.objects == len(CELLS) - 1


@pytest.mark.parametrize("moment", ["list", "fetch", "read"])
def test_an_object_that_is_overwritten_while_the_pull_runs(
    place: Place, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Between listing and reading its row must be of the new bytes; after the reading the next pull sees it."""
    meanwhile(place, monkeypatch, moment, lambda: place.write(KEYS[-1], b"newer and longer " * 9999))
    snapshot = pull(place.context)
    if moment == "read":
        row = place.rows(snapshot).loc[KEYS[-1]]
        assert (row["size"], row["sha256"]) == (len(CELLS[KEYS[-1]]), sha256(CELLS[KEYS[-1]]))
        snapshot = pull(place.context)
    place.assert_exact(snapshot)


def test_an_object_that_never_holds_still_is_named(folder_place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch, count = folder_place.store.fetch, iter(range(1, 99))

    def overwritten_first(key: str) -> Fetched:
        if key == KEYS[-1]:
            folder_place.write(key, b"x" * next(count))
        fetched = fetch(key)
        if key == KEYS[-1]:
            folder_place.write(key, b"x" * next(count))
        return fetched

    monkeypatch.setattr(folder_place.store, "fetch", overwritten_first)
    rows = folder_place.rows(pull(folder_place.context))
    assert rows.loc[KEYS[-1], "problem"] == "unreadable"
    assert (rows["problem"] != "").sum() == 1


@pytest.mark.parametrize("damage", ["lost", "cut", "another's"])
def test_a_damaged_table_is_restored_from_the_copy(folder_place: Place, damage: str) -> None:
    first = pull(folder_place.context)
    folder_place.write(KEYS[0], CELLS[KEYS[1]])
    second = pull(folder_place.context)
    whole = folder_place.store.get(second.table)
    if damage == "lost":
        folder_place.delete(second.table)
    else:
        folder_place.write(second.table, whole[:-50] if damage == "cut" else folder_place.store.get(first.table))
    assert pull(folder_place.context) == second
    assert folder_place.store.get(second.table) == whole


@pytest.mark.parametrize("damage", ["lost", "cut"])
def test_a_damaged_table_without_a_copy_costs_fetching_and_not_the_night(
    folder_place: Place, damage: str, tmp_path: Path
) -> None:
    first = pull(folder_place.context)
    if damage == "lost":
        folder_place.delete(first.table)
    else:
        folder_place.write(first.table, b"PAR1")
    other_machine = context_over(folder_place.store, tmp_path / "another machine")
    again = pull(other_machine)
    assert again.id == first.id
    assert folder_place.context.records.load(Snapshot, first.id) == again
    folder_place.assert_exact(again)


@pytest.mark.parametrize("damage", ["lost", "cut"])
def test_a_damaged_object_of_a_table_in_parts_is_restored_from_its_copy(
    folder_place: Place, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.store.records.WORTH_PARTS", 0)
    place, records = folder_place, folder_place.context.records
    first = pull(place.context)
    place.write(KEYS[0], CELLS[KEYS[1]])
    second = pull(place.context)
    shared = records.load_manifest(first.table).part_keys() & records.load_manifest(second.table).part_keys()
    assert len(shared) == 1
    for key in (second.table, *records.load_manifest(second.table).part_keys()):
        whole = place.store.get(key)
        if damage == "lost":
            place.delete(key)
        else:
            place.write(key, whole[:-5])
        with monkeypatch.context() as patch:
            patch.setattr(place.context.workspace, "write_object", None)  # no cell is fetched
            assert pull(place.context) == second
        assert place.store.get(key) == whole
    place.assert_exact(second)
    # Without copies what is left is used again, and the cells are fetched.
    shutil.rmtree(place.context.workspace.home / "cache" / "snapshots")
    place.delete(*shared)
    third = pull(place.context)
    assert third.id == second.id
    place.assert_exact(third)


@pytest.mark.parametrize("pointer", ["lost", "damaged"])
def test_a_lost_pointer_costs_nothing(folder_place: Place, pointer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = pull(folder_place.context)
    if pointer == "lost":
        folder_place.delete("retraining/latest/snapshot.json")
    else:
        folder_place.write("retraining/latest/snapshot.json", b"{half")
    fetched = noted_fetches(folder_place, monkeypatch)
    assert pull(folder_place.context) == first
    assert not [key for key in fetched if key.startswith("labeled/")]


def test_bytes_written_again_are_not_fetched_every_night(folder_place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a folder a new time is a new ETag: same snapshot, and fetched once more, not for ever."""
    first = pull(folder_place.context)
    for key in KEYS:
        folder_place.write(key, CELLS[key])
    assert pull(folder_place.context) == first
    fetched = noted_fetches(folder_place, monkeypatch)
    assert pull(folder_place.context) == first
    assert not [key for key in fetched if key.startswith("labeled/")]


def test_the_journal_holds_no_more_than_it_must(folder_place: Place) -> None:
    for turn in range(3):
        folder_place.write(KEYS[0], b"turn %d" % turn)
        pull(folder_place.context)
        noted = [path.read_text() for path in (folder_place.context.workspace.home / "cache").glob("pulled-*.jsonl")]
        assert noted == []
