"""Pull: what is fetched and what is not, what a snapshot holds, and what a killed pull leaves."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from infra.store.base import ObjectInfo
from infra.store.folder import FolderStore
from tasks.context import Context
from tasks.pull import pull
from tasks.snapshots.objects import read_object
from tests.builders import CountingStore, context_over, folder_context, synthetic_cells, with_settings
from validation.digest import sha256
from validation.errors import DataInvalid, ObjectMissing, StoreUnreachable
from validation.records import CLASSES, NEGATIVE, POSITIVE, Snapshot

CELLS = synthetic_cells()
KEYS = sorted(CELLS)


@pytest.fixture
def store() -> CountingStore:
    return CountingStore(CELLS)


@pytest.fixture
def context(store: CountingStore, home: Path) -> Context:
    return context_over(store, home)


def rows(context: Context, snapshot: Snapshot) -> pd.DataFrame:
    return context.records.load_table(snapshot.table).set_index("key")


def problems(context: Context, snapshot: Snapshot) -> dict[str, str]:
    table = rows(context, snapshot)
    return {str(key): problem for key, problem in table["problem"].items() if problem}


def test_a_snapshot_holds_what_is_in_the_store(context: Context) -> None:
    snapshot = pull(context)
    table = rows(context, snapshot)
    assert list(table.index) == KEYS
    assert snapshot.objects == snapshot.new == len(CELLS)
    assert snapshot.bytes == sum(map(len, CELLS.values()))
    assert snapshot.by_class == {label: sum(f"/{label}/" in key for key in KEYS) for label in CLASSES}
    assert snapshot.patients == len({key.split("/")[2].split("ThinF")[0] for key in KEYS}) == 12
    assert (snapshot.parent, snapshot.gone, snapshot.without_patient) == (None, 0, 0)
    for key in KEYS:
        assert table.loc[key, "sha256"] == sha256(CELLS[key])
        assert read_object(context, key, sha256(CELLS[key])) == CELLS[key]


def test_a_second_pull_fetches_nothing_and_is_the_same_snapshot(context: Context, store: CountingStore) -> None:
    first = pull(context)
    store.fetched.clear()
    assert pull(context) == first
    assert not store.fetched


def test_another_machine_and_another_store_give_the_same_snapshot(context: Context, tmp_path: Path) -> None:
    other = folder_context(tmp_path / "other", CELLS)
    assert pull(other).id == pull(context).id


def test_only_what_is_new_is_fetched(context: Context, store: CountingStore) -> None:
    first = pull(context)
    arrived = {key: data for key, data in synthetic_cells(2).items() if key not in CELLS}
    store.objects.update(arrived)
    store.fetched.clear()
    second = pull(context)
    assert set(store.fetched) == set(arrived)
    assert second.id != first.id
    assert (second.parent, second.new, second.gone) == (first.id, len(arrived), 0)
    table = rows(context, second)
    assert (table.loc[KEYS, "first_seen"] == rows(context, first).loc[KEYS, "first_seen"]).all()


def test_changed_content_is_fetched_and_new(context: Context, store: CountingStore) -> None:
    first = pull(context)
    store.objects[KEYS[0]] = CELLS[KEYS[1]]
    store.fetched.clear()
    second = pull(context)
    assert list(store.fetched) == [KEYS[0]]
    assert second.id != first.id
    assert (second.new, second.gone) == (1, 0)
    assert rows(context, second).loc[KEYS[0], "sha256"] == sha256(CELLS[KEYS[1]])


def test_a_cell_moved_to_the_other_class_is_another_snapshot(context: Context, store: CountingStore) -> None:
    first = pull(context)
    key = next(key for key in KEYS if f"/{POSITIVE}/" in key)
    store.objects[key.replace(POSITIVE, NEGATIVE)] = store.objects.pop(key)
    second = pull(context)
    assert (second.objects, second.new, second.gone) == (first.objects, 1, 1)
    assert second.by_class[NEGATIVE] == first.by_class[NEGATIVE] + 1


def test_what_was_deleted_is_gone_and_what_comes_back_is_known(context: Context, store: CountingStore) -> None:
    first = pull(context)
    data = store.objects.pop(KEYS[0])
    second = pull(context)
    assert (second.objects, second.gone) == (len(CELLS) - 1, 1)
    store.objects[KEYS[0]] = data
    assert pull(context) == first
    # The first snapshot is what it was, whatever happened since.
    assert list(rows(context, first).index) == KEYS


def test_the_same_content_written_again_is_the_same_snapshot(home: Path) -> None:
    context = folder_context(home, CELLS)
    first = pull(context)
    assert isinstance(context.store, FolderStore)
    for path in (context.store.root / "labeled").rglob("*.png"):
        os.utime(path, (1, 1))  # another time is another ETag
    second = pull(context)
    assert second == first


def test_a_misspelt_class_folder_is_named_and_can_be_declared(home: Path) -> None:
    objects = {f"labeled/parasitized/C{n}P1thin.png": b"p" for n in range(3)}
    store = CountingStore(objects | {f"labeled/{NEGATIVE}/C1P1thin.png": b"u", f"labeled/{NEGATIVE}/": b""})
    with pytest.raises(DataInvalid) as caught:
        pull(context_over(store, home))
    assert "no Parasitized cells" in caught.value.message
    assert "'parasitized' (3 objects)" in caught.value.message
    assert "RETRAIN_CLASSES='parasitized=Parasitized'" in caught.value.hint
    context = context_over(store, home, classes="parasitized=Parasitized")
    snapshot = pull(context)
    assert snapshot.by_class == {POSITIVE: 3, NEGATIVE: 1}
    # The placeholder that a bucket's console leaves for a folder is no image.
    problems = context.records.load_table(snapshot.table).set_index("key")["problem"]
    assert problems[f"labeled/{NEGATIVE}/"] == "junk file"


def test_what_cannot_be_an_image_is_named_and_never_fetched(context: Context, store: CountingStore) -> None:
    odd = {
        f"labeled/{POSITIVE}/Thumbs.db": "junk file",
        f"labeled/{NEGATIVE}/._C1P1thin.png": "junk file",
        "labeled/.DS_Store": "junk file",
        f"labeled/{POSITIVE}/../../etc/passwd": "odd key",
        f"labeled/{POSITIVE}//C1P1thin.png": "odd key",
        f"labeled/{POSITIVE}/new\nline.png": "odd key",
        "labeled/notes.txt": "odd key",
        "labeled/parasitized/C1P1thin.png": "unknown class",
        "labeled/<script>/C1P1thin.png": "unknown class",
    }
    clean = pull(context)
    store.objects.update(dict.fromkeys(odd, b"x"))
    store.fetched.clear()
    snapshot = pull(context)
    assert problems(context, snapshot) == odd
    assert not store.fetched
    assert snapshot.objects == len(CELLS) + len(odd)
    assert snapshot.by_class == clean.by_class
    assert snapshot.patients == clean.patients


def test_a_text_file_among_the_images_is_fetched_for_validation_to_judge(
    context: Context, store: CountingStore
) -> None:
    store.objects[f"labeled/{POSITIVE}/notes.txt"] = b"to do"
    assert problems(context, pull(context)) == {}


def test_a_cell_without_a_patient_is_counted(context: Context, store: CountingStore) -> None:
    store.objects[f"labeled/{POSITIVE}/scan_0001.png"] = CELLS[KEYS[0]]
    snapshot = pull(context)
    assert snapshot.without_patient == 1
    assert rows(context, snapshot).loc[f"labeled/{POSITIVE}/scan_0001.png", "patient"] == ""


def test_too_large_objects_are_not_fetched(context: Context, store: CountingStore) -> None:
    largest = max(KEYS, key=lambda key: len(CELLS[key]))
    small = with_settings(context, data={"max_bytes": len(CELLS[largest]) - 1})
    snapshot = pull(small)
    assert problems(small, snapshot)[largest] == "too many bytes"
    assert largest not in store.fetched
    exact = with_settings(context, data={"max_bytes": len(CELLS[largest])})
    assert problems(exact, pull(exact)) == {}


def test_an_object_deleted_during_the_listing_is_not_in_the_snapshot(context: Context, store: CountingStore) -> None:
    store.broken[KEYS[3]] = ObjectMissing("no object")
    snapshot = pull(context)
    assert snapshot.objects == len(CELLS) - 1
    assert KEYS[3] not in rows(context, snapshot).index


def test_an_unreadable_object_costs_itself_and_is_tried_again(context: Context, store: CountingStore) -> None:
    store.broken[KEYS[3]] = StoreUnreachable("access denied")
    snapshot = pull(context)
    assert problems(context, snapshot) == {KEYS[3]: "unreadable"}
    assert rows(context, snapshot).loc[KEYS[3], "sha256"] == ""
    store.broken.clear()
    store.fetched.clear()
    repaired = pull(context)
    assert list(store.fetched) == [KEYS[3]]
    assert problems(context, repaired) == {}
    assert repaired.objects == len(CELLS)


def test_a_store_that_goes_away_stops_the_night(
    context: Context, store: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter([None])

    def check() -> None:
        if next(calls, "gone") == "gone":
            raise StoreUnreachable("no route to host")

    monkeypatch.setattr(store, "check", check)
    store.broken = {key: StoreUnreachable("no route to host") for key in KEYS[5:]}
    with pytest.raises(StoreUnreachable):
        pull(context)
    assert context.records.latest("snapshot", Snapshot) is None


@pytest.mark.parametrize("others", [{}, {"retraining/reports/x.html": b"x"}, {"labels/Parasitized/x.png": b"x"}])
def test_a_store_without_cells_is_an_error_with_a_hint(others: dict[str, bytes], home: Path) -> None:
    context = context_over(CountingStore(others), home)
    with pytest.raises(DataInvalid, match="no cells in memory://counting") as caught:
        pull(context)
    assert "retrain import" in caught.value.hint
    assert "Parasitized and Uninfected" in caught.value.hint


def test_a_missing_store_is_reported_at_once(home: Path) -> None:
    context = context_over(FolderStore(home / "none"), home)
    with pytest.raises(StoreUnreachable, match="no folder at"):
        pull(context)


class Killed(BaseException):
    """As a SIGKILL: nothing below catches it."""


def test_a_killed_pull_resumes(context: Context, store: CountingStore) -> None:
    store.broken[KEYS[20]] = Killed()  # type: ignore[assignment]
    with pytest.raises(Killed):
        pull(with_settings(context, wire={"threads": 1}))
    store.broken.clear()
    journal = next((context.workspace.home / "cache").glob("pulled-*.jsonl"))
    noted = sum(line.startswith("[") for line in journal.read_text().splitlines())
    assert 0 < noted < len(CELLS)
    with journal.open("a") as file:
        file.write('["labeled/Parasitized/torn')
    store.fetched.clear()
    snapshot = pull(context)
    assert sum(store.fetched.values()) == len(CELLS) - noted
    assert snapshot.objects == snapshot.new == len(CELLS)
    # What was noted after the torn line counts too.
    store.fetched.clear()
    context.store.objects.pop("retraining/latest/snapshot.json")  # type: ignore[attr-defined]
    assert pull(context).id == snapshot.id
    assert len(store.fetched) <= 1


def test_a_rotten_copy_is_fetched_again(context: Context, store: CountingStore) -> None:
    pull(context)
    key, digest = KEYS[0], sha256(CELLS[KEYS[0]])
    context.workspace.object_path(digest).write_bytes(b"rot")
    store.fetched.clear()
    assert read_object(context, key, digest) == CELLS[key]
    assert read_object(context, key, digest) == CELLS[key]
    assert store.fetched == {key: 1}


def test_bytes_that_were_overwritten_are_never_taken_for_the_old_ones(context: Context, store: CountingStore) -> None:
    pull(context)
    key, digest = KEYS[0], sha256(CELLS[KEYS[0]])
    context.workspace.object_path(digest).unlink()
    store.objects[key] = b"something else"
    with pytest.raises(ObjectMissing, match="overwritten since the snapshot"):
        read_object(context, key, digest)


def test_one_key_with_two_listings_keeps_the_night(home: Path) -> None:
    """A listing that shows an object twice, as a bucket that changes between two pages may."""

    class Twice(CountingStore):
        def list(self, prefix: str) -> Iterator[ObjectInfo]:
            for info in super().list(prefix):
                yield dataclasses.replace(info, etag="older")
                yield info

    context = context_over(Twice(CELLS), home)
    assert pull(context).objects == len(CELLS)


def test_input_is_never_touched(context: Context, store: CountingStore) -> None:
    pull(context)
    assert {key: data for key, data in store.objects.items() if key.startswith("labeled/")} == CELLS
