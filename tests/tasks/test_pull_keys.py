"""Keys from outside: whatever they hold, none stops a pull, becomes a path, or is lost on the way."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from infra.store.folder import FolderStore
from tasks.pull import pull
from tests.builders import CountingStore, context_over
from validation.digest import sha256
from validation.records import CLASSES

pytestmark = pytest.mark.thorough

PARTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["..", ".", "", "Parasitized", "Uninfected", "/etc/passwd", "~", "C:\\x", "%2e%2e", "\x00", "\ud800"]
    ),
    st.sampled_from(
        ["Thumbs.db", "C1P1ThinF_IMG_1_cell_1.png", "<script>", "a\nb", "'; DROP TABLE", "\u202egnp", "x" * 300]
    ),
)
KEYS = st.lists(PARTS, min_size=1, max_size=4).map(lambda parts: "labeled/" + "/".join(parts))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.dictionaries(KEYS, st.binary(max_size=40), min_size=1, max_size=12))
@example({"labeled/Parasitized/../../../etc/cron.d/x.png": b"x", "labeled//": b"", "labeled/Parasitized/": b""})
@example({"labeled/Parasitized/\ud800.png": b"x", "labeled/Parasitized/\\ud800.png": b"y"})
def test_every_key_is_accounted_for_and_none_becomes_a_path(objects: dict[str, bytes]) -> None:
    # A store that lacks a class and has other folders is refused: see test_pull.py.
    objects = {f"labeled/{label}/x.png": b"x" for label in CLASSES} | objects
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder, "a", "home")
        context = context_over(CountingStore(objects), home, wire={"threads": 2})
        snapshot = pull(context)
        rows = context.records.load_table(snapshot.table).set_index("key")
        shown = {key.encode("utf-8", "backslashreplace").decode() for key in objects}
        assert set(rows.index) == shown
        assert snapshot.objects == len(shown)
        for key, data in objects.items():
            if "\ud800" not in key and rows.loc[key, "problem"] == "":
                assert rows.loc[key, "sha256"] == sha256(data)
        wanted = {sha256(objects[key]) for key in objects if key.isprintable()} | set(rows["sha256"])
        for path in Path(folder).rglob("*"):
            inside = path.relative_to(folder).as_posix()
            assert "a/home/cache".startswith(inside) or inside.startswith("a/home/cache/")
            if path.is_file() and "/objects/" in inside:
                assert path.parent.name + path.name in wanted
        assert pull(context) == snapshot


NAMES = st.binary(min_size=1, max_size=40).filter(lambda name: not set(name) & {0, 0x2F} and name not in (b".", b".."))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.lists(NAMES, min_size=1, max_size=8, unique=True))
@example([b"\xff\xfe.png", b"\\xff\\xfe.png"])
def test_every_file_name_of_a_folder_is_accounted_for(names: list[bytes]) -> None:
    """A file's name may be any bytes; one that is no text is shown escaped and named as it cannot be read."""
    folder = Path(tempfile.mkdtemp())
    try:
        place = folder / "store" / "labeled" / "Parasitized"
        place.mkdir(parents=True)
        for name in names:
            Path(bytes(place).decode(), name.decode("utf-8", "surrogateescape")).write_bytes(name)
        context = context_over(FolderStore(folder / "store"), folder / "home", wire={"threads": 2})
        snapshot = pull(context)
        keys = {info.key for info in context.store.list("labeled/")}
        rows = context.records.load_table(snapshot.table).set_index("key")
        # What is listed and not in the snapshot cannot be read under a name that is text.
        assert set(rows.index) <= keys
        for key in keys - set(rows.index):
            assert not context.store.exists(key)
        assert all(rows.loc[rows["problem"] == "", "sha256"].str.len() == 64)
    finally:
        shutil.rmtree(folder)
