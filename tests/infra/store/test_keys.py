"""Keys come from outside: whatever they hold, they lead nowhere."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from infra.store import keys
from infra.store.folder import FolderStore
from infra.store.keys import LabeledKey, is_junk, is_odd, parse_labeled
from validation.errors import RetrainError

PARTS = st.one_of(
    st.sampled_from(
        ["..", ".", "", "~", "labeled", "Parasitized", "%2e%2e", "..\\..", "C:", "a" * 300, "\udcff", "\x00"]
    ),
    st.text(st.characters(), max_size=8),
)
KEYS = st.lists(PARTS, max_size=6).map("/".join)
steady = settings(deadline=None, derandomize=True, max_examples=150)


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@steady
@given(KEYS)
@example("../secret")
@example("labeled/../../secret")
@example("/etc/passwd")
def test_no_key_leads_a_folder_store_outside_its_root(key: str) -> None:
    with tempfile.TemporaryDirectory() as outer:
        (Path(outer) / "secret").write_bytes(b"secret")
        store = FolderStore(Path(outer) / "root")
        (store.root / "labeled").mkdir(parents=True)
        before = snapshot(Path(outer))
        assert not store.exists(key)
        assert store.local_path(key) is None
        assert [info.key for info in store.list(key)] == []
        with pytest.raises(RetrainError):
            store.get(key)
        for write in (store.put, store.create):
            try:
                write(key, b"x")
            except RetrainError:
                continue
            written = store.local_path(key)
            assert written is not None
            assert written.resolve().is_relative_to(store.root.resolve())
            assert [info.key for info in store.list(key)] == [key]
            assert store.get(key) == b"x"
        after = {
            path: data for path, data in snapshot(Path(outer)).items() if not path.startswith(f"{store.root}{os.sep}")
        }
        assert after == before


@steady
@given(st.one_of(KEYS, KEYS.map(lambda key: f"labeled/{key}")))
@example("labeled/Parasitized/../evil.png")
@example("labeled/../x")
@example("labeled//x")
def test_a_parsed_key_can_mislead_no_path(key: str) -> None:
    parsed = parse_labeled(key)
    if parsed is None:
        return
    assert key == f"labeled/{parsed.label}/{parsed.name}"
    assert "/" not in parsed.label
    for part in (parsed.label, *parsed.name.split("/")):
        assert part not in ("", ".", "..")
        assert not any(letter < " " or letter == "\x7f" for letter in part)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("labeled/Parasitized/x.png", LabeledKey("Parasitized", "x.png")),
        ("labeled/Other/deep/x.png", LabeledKey("Other", "deep/x.png")),
        ("labeled/x.png", None),
        ("labeled/Parasitized/", None),
        ("unlabeled/Parasitized/x.png", None),
        ("retraining/Parasitized/x.png", None),
    ],
)
def test_labeled_keys(key: str, expected: LabeledKey | None) -> None:
    assert parse_labeled(key) == expected


@pytest.mark.parametrize("key", ["a/b", "a", "a/...", "a/..b", "a/b..", "ä/ ", "a\\..\\b", "%2e%2e/a"])
def test_clean_keys(key: str) -> None:
    assert not is_odd(key)


@pytest.mark.parametrize("key", ["", "/", "a/", "/a", "a//b", ".", "..", "a/../b", "a/./b", "a\nb", "a\x7f", "\udc80"])
def test_odd_keys(key: str) -> None:
    assert is_odd(key)


@pytest.mark.parametrize("name", ["Thumbs.db", "THUMBS.DB", ".DS_Store", "desktop.ini", "._C1thin_cell_1.png"])
def test_junk(name: str) -> None:
    assert is_junk(f"labeled/Parasitized/{name}")
    assert is_junk(name)


@pytest.mark.parametrize("name", ["x.png", "thumbs.db.png", "notes.txt", ".hidden.png", "Thumbs.db/x.png"])
def test_no_junk(name: str) -> None:
    assert not is_junk(f"labeled/Parasitized/{name}")


def test_everything_written_lies_under_one_prefix_and_is_clean() -> None:
    written = {
        keys.record_key("snapshots", "1"),
        keys.table_key("snapshots", "1", "rows"),
        keys.candidate_key("1", "model.onnx"),
        keys.member_key("1", "member.onnx"),
        keys.look_key(1, "ab"),
        keys.history_key(1),
        keys.report_key("1"),
        keys.latest_key("night"),
        keys.SYNTHETIC_MARK,
    }
    assert len(written) == 9
    for key in written:
        assert key.startswith("retraining/")
        assert not is_odd(key)


def test_numbered_keys_sort_as_their_numbers() -> None:
    for name in (keys.history_key, lambda number: keys.look_key(number, "ab")):
        assert sorted(map(name, [10, 9, 100, 1])) == [name(1), name(9), name(10), name(100)]
