"""Importing folders and zip files: what goes in, what stays out, and that nothing stored is ever changed."""

from __future__ import annotations

import io
import logging
import os
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from infra.local.files import Workspace
from infra.store.base import Store
from infra.store.folder import FolderStore
from infra.store.memory import MemoryStore
from infra.store.s3 import S3Store
from tasks.intake import sources as cell_sources
from tasks.intake.download import ImportProgress
from tasks.intake.import_cells import ImportResult, Labelling, import_cells
from validation.errors import DataInvalid, StoreUnreachable, UsageError

CELLS = {"Parasitized/a.png": b"\x89PNG a", "Parasitized/ä b.png": b"\x89PNG b", "Uninfected/c.png": b"\x89PNG c"}
STORED = {f"labeled/{name}": data for name, data in CELLS.items()}

Import = Callable[[Path], ImportResult]


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def run(store: MemoryStore, tmp_path: Path) -> Import:
    return lambda source: import_cells(str(source), store, Workspace(tmp_path / "home"))


def folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def zipped(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def make(kind: str, tmp_path: Path, files: dict[str, bytes]) -> Path:
    return folder(tmp_path / "cells", files) if kind == "folder" else zipped(tmp_path / "cells.zip", files)


both = pytest.mark.parametrize("kind", ["folder", "zip"])


@both
@pytest.mark.parametrize("around", ["", "cell_images/", "data/cell_images/"])
def test_cells_go_in_unchanged(kind: str, around: str, run: Import, store: MemoryStore, tmp_path: Path) -> None:
    source = make(kind, tmp_path, {around + name: data for name, data in CELLS.items()})
    result = run(source)
    assert store.objects == STORED
    assert result == ImportResult(str(source), 3, 3, 0, {}, sum(map(len, CELLS.values())))


@both
def test_a_second_import_changes_nothing(kind: str, run: Import, store: MemoryStore, tmp_path: Path) -> None:
    source = make(kind, tmp_path, CELLS)
    run(source)
    result = run(source)
    assert (result.written, result.unchanged, result.bytes, result.skipped) == (0, 3, 0, {})
    assert store.objects == STORED


@both
def test_an_interrupted_import_resumes(kind: str, run: Import, store: MemoryStore, tmp_path: Path) -> None:
    source = make(kind, tmp_path, CELLS)
    store.put("labeled/Parasitized/a.png", CELLS["Parasitized/a.png"])
    result = run(source)
    assert (result.written, result.unchanged) == (2, 1)


@both
@pytest.mark.parametrize("other", [b"\x89PNG x", b"of another size"])
def test_stored_content_is_never_overwritten(
    kind: str, other: bytes, run: Import, store: MemoryStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.put("labeled/Parasitized/a.png", other)
    result = run(make(kind, tmp_path, CELLS))
    assert store.objects["labeled/Parasitized/a.png"] == other
    assert result.skipped == {"exists with other content": 1}
    assert (result.written, result.found) == (2, 3)
    assert "exists with other content: Parasitized/a.png" in caplog.text


def test_an_object_written_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    class Late(MemoryStore):
        def create(self, key: str, data: bytes) -> bool:
            self.objects.setdefault(key, b"theirs" if "/a" in key else data)
            return super().create(key, data)

    store = Late()
    result = import_cells(str(folder(tmp_path / "cells", CELLS)), store, Workspace(tmp_path))
    assert store.get("labeled/Parasitized/a.png") == b"theirs"
    assert (result.written, result.unchanged, result.skipped) == (0, 2, {"exists with other content": 1})


@pytest.mark.server
def test_an_etag_that_is_the_md5_saves_the_download(s3_store: S3Store, tmp_path: Path) -> None:
    source = str(folder(tmp_path / "cells", CELLS))
    assert import_cells(source, s3_store, Workspace(tmp_path)).written == 3

    def refuse(key: str) -> bytes:
        raise AssertionError(f"{key} was downloaded")

    s3_store.get = refuse  # type: ignore[method-assign]
    assert import_cells(source, s3_store, Workspace(tmp_path)).unchanged == 3
    assert sorted(info.key for info in s3_store.list("labeled/")) == sorted(STORED)


def test_a_folder_store_need_not_exist(tmp_path: Path) -> None:
    store: Store = FolderStore(tmp_path / "new" / "store")
    source = str(folder(tmp_path / "cells", CELLS))
    assert import_cells(source, store, Workspace(tmp_path)).written == 3
    assert import_cells(source, store, Workspace(tmp_path)).unchanged == 3
    store.check()
    assert {info.key: store.get(info.key) for info in store.list("")} == STORED


def test_class_folders_are_matched_without_case(run: Import, store: MemoryStore, tmp_path: Path) -> None:
    run(folder(tmp_path / "cells", {"PARASITIZED/a.png": b"a", "uninfected/b.png": b"b"}))
    assert sorted(store.objects) == ["labeled/Parasitized/a.png", "labeled/Uninfected/b.png"]


@both
def test_every_file_is_accounted_for(kind: str, run: Import, store: MemoryStore, tmp_path: Path) -> None:
    extra = {
        "cell_images/Parasitized/Thumbs.db": b"",
        "cell_images/Uninfected/.DS_Store": b"",
        "__MACOSX/cell_images/Parasitized/._a.png": b"",
        "cell_images/Maybe/x.png": b"",
        "cell_images/Maybe/y.png": b"",
        "cell_images/readme.txt": b"",
        "licence.txt": b"",
        "cell_images/Parasitized/notes.txt": b"imported: judging is validation's job",
        "cell_images/Parasitized/visit 2/a.png": b"deeper",
    }
    result = run(make(kind, tmp_path, {f"cell_images/{name}": data for name, data in CELLS.items()} | extra))
    assert result.skipped == {
        "left by a file manager": 3,
        "outside the class folders": 2,
        "unknown class folder: Maybe": 2,
    }
    assert result.found == 12 == result.written + sum(result.skipped.values())
    assert sorted(set(store.objects) - set(STORED)) == [
        "labeled/Parasitized/notes.txt",
        "labeled/Parasitized/visit 2/a.png",
    ]


def test_two_files_for_one_key(run: Import, store: MemoryStore, tmp_path: Path) -> None:
    result = run(folder(tmp_path / "cells", {"PARASITIZED/a.png": b"one", "Parasitized/a.png": b"two"}))
    assert result.skipped == {"twice in the source": 1}
    assert store.objects == {"labeled/Parasitized/a.png": b"one"}


def test_a_warning_names_the_first_ten(run: Import, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(folder(tmp_path / "cells", CELLS | {f"x\x1b[2J/{number:02d}.png": b"" for number in range(12)}))
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "skipped 12" in record.getMessage()
    assert "09.png and 2 more" in record.getMessage()
    assert "\x1b" not in record.getMessage()


def test_foreign_folders_without_number_are_not_all_named(run: Import, tmp_path: Path) -> None:
    result = run(folder(tmp_path / "cells", CELLS | {f"folder {number:03d}/x": b"" for number in range(50)}))
    assert len(result.skipped) == 21
    assert result.skipped["unknown class folder: (others)"] == 30


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, "found nothing"),
        ({"a.png": b"", "b.png": b""}, "found 2 loose files"),
        ({"healthy/a.png": b"", "sick/b.png": b"", "c": b""}, "found healthy/, sick/, 1 loose files"),
        ({"a/b/c/Parasitized/x.png": b""}, "found a/"),
    ],
)
@both
def test_a_source_without_class_folders(
    kind: str, files: dict[str, bytes], found: str, run: Import, tmp_path: Path
) -> None:
    (tmp_path / "cells").mkdir()
    with pytest.raises(UsageError) as caught:
        run(make(kind, tmp_path, files))
    assert "expected Parasitized/*.png and Uninfected/*.png" in caught.value.message
    assert found in caught.value.message
    assert caught.value.hint


def test_half_of_the_classes_under_other_names_stops_the_import(
    run: Import, store: MemoryStore, tmp_path: Path
) -> None:
    source = folder(
        tmp_path / "cells", {"Parasitised/a.png": b"a", "Parasitised/b.JPG": b"b", "uninfected/c.png": b"c"}
    )
    with pytest.raises(UsageError) as caught:
        run(source)
    assert "no Parasitized cells" in caught.value.message
    assert "Parasitised (2 images)" in caught.value.message
    assert "--class 'Parasitised=Parasitized'" in caught.value.hint
    assert not store.objects
    named = Labelling({"parasitised": "Parasitized"})
    assert import_cells(str(source), store, Workspace(tmp_path), labelling=named).written == 3
    assert sorted(store.objects) == [
        "labeled/Parasitized/a.png",
        "labeled/Parasitized/b.JPG",
        "labeled/Uninfected/c.png",
    ]


@pytest.mark.parametrize("around", ["", "labeled/"])
def test_a_bucket_is_a_source(around: str, store: MemoryStore, tmp_path: Path) -> None:
    bucket = MemoryStore()
    bucket.objects = {around + name: data for name, data in CELLS.items()}
    bucket.objects |= {f"{around}Parasitized/": b"", "retraining/members/x.png": b"no cell"}
    result = import_cells("s3://theirs", store, Workspace(tmp_path), bucket=lambda _: bucket)
    assert store.objects == STORED
    assert result.skipped.pop("left by a file manager") == 1
    assert sum(result.skipped.values()) == 1
    bucket.objects["retraining/synthetic.json"] = b"{}"
    with pytest.raises(UsageError, match="are synthetic"):
        import_cells("s3://theirs", store, Workspace(tmp_path), bucket=lambda _: bucket)


IMAGES = {"scans/a.png": b"a", "scans/ä b.png": b"b", "c.png": b"c", "d.png": b"d", "x/e.png": b"e", "y/e.png": b"f"}
ROWS = [("scans/a.png", "1"), ("/data/upload/ä b.png", "1"), ("c", "0"), ("d.png", "1"), ("d.png", "0"), ("e", "1")]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_labels_may_come_as_a_table(ending: str, store: MemoryStore, tmp_path: Path) -> None:
    table, frame = tmp_path / f"labels.{ending}", pd.DataFrame(ROWS, columns=["file", "stage"])
    frame.to_csv(table, sep=";", index=False) if ending == "csv" else frame.to_parquet(table)
    labelling = Labelling({"1": "Parasitized", "0": "Uninfected"}, table, ("file", "stage"))
    source = str(folder(tmp_path / "images", IMAGES))
    result = import_cells(source, store, Workspace(tmp_path), labelling=labelling)
    assert store.objects == {
        "labeled/Parasitized/scans/a.png": b"a",
        "labeled/Parasitized/scans/ä b.png": b"b",
        "labeled/Uninfected/c.png": b"c",
    }
    assert result.skipped == {"two labels in the table": 1, "no label in the table": 2}
    with pytest.raises(UsageError) as caught:
        import_cells(source, store, Workspace(tmp_path), labelling=Labelling(table=table))
    assert "no column 'image' and no column 'label'; it has 'file', 'stage'" in caught.value.message
    with pytest.raises(UsageError, match=r"images under other names: 1 \(2 images\), 0 \(1 images\)"):
        import_cells(source, store, Workspace(tmp_path), labelling=Labelling({}, table, ("file", "stage")))


def test_what_stands_in_for_an_image_is_not_stored(run: Import, store: MemoryStore, tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    result = run(folder(tmp_path / "cells", CELLS | {"Uninfected/e.png": b"", "Uninfected/p.png": pointer}))
    assert result.skipped == {"an empty file": 1, "a git-lfs pointer; `git lfs pull` fetches the image": 1}
    assert store.objects == STORED


def test_a_tar_archive_is_to_be_unpacked(run: Import, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "cells.tar.gz", "w:gz") as archive:
        archive.add(folder(tmp_path / "cells", CELLS), "cells")
    with pytest.raises(DataInvalid) as caught:
        run(tmp_path / "cells.tar.gz")
    assert "is a tar archive" in caught.value.message
    assert "unpack it" in caught.value.hint


def test_a_class_folder_itself(run: Import, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        run(folder(tmp_path, CELLS) / "Parasitized")
    assert "name the folder that holds it" in caught.value.hint


def test_several_sets_of_class_folders(run: Import, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="night 1, night 2"):
        run(folder(tmp_path / "cells", {"night 1/Parasitized/a.png": b"", "night 2/Parasitized/a.png": b""}))


@pytest.mark.parametrize("source", ["nothing/here", "", " ", "a\x00b", "x" * 5000])
def test_no_such_source(source: str, store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder(tmp_path, CELLS))
    with pytest.raises(UsageError):
        import_cells(source, store, Workspace(tmp_path / "home"))
    assert store.objects == {}


def test_links_are_followed_but_not_for_ever(run: Import, store: MemoryStore, tmp_path: Path) -> None:
    source = folder(tmp_path / "cells", {f"real/{name}": data for name, data in CELLS.items()})
    real = source / "real"
    for name in ("Parasitized", "Uninfected"):
        (source / name).symlink_to(real / name)
    (real / "Parasitized" / "up").symlink_to(source)
    (real / "Parasitized" / "self").symlink_to("self")
    (real / "Parasitized" / "dangling.png").symlink_to(source / "nowhere")
    os.mkfifo(real / "Uninfected" / "pipe")
    (tmp_path / "link").symlink_to(source)
    result = run(tmp_path / "link")
    assert store.objects.items() >= STORED.items()
    assert result.skipped["not a plain file"] >= 1
    assert result.skipped["unreadable"] >= 2


def test_no_link_leads_out_of_the_folder(run: Import, store: MemoryStore, tmp_path: Path) -> None:
    source = folder(tmp_path / "cells", CELLS)
    secret = folder(tmp_path / "secret", {"shadow": b"root:x:", "more/key.png": b"key"})
    (source / "Uninfected" / "link.png").symlink_to(secret / "shadow")
    (source / "Uninfected" / "relative.png").symlink_to("../../secret/shadow")
    (source / "Uninfected" / "folder").symlink_to(secret / "more")
    result = run(source)
    assert store.objects == STORED
    assert result.skipped == {"a link out of the folder": 3}
    (tmp_path / "links").mkdir()
    for name in ("Parasitized", "Uninfected"):
        (tmp_path / "links" / name).symlink_to(source / name)
    with pytest.raises(UsageError, match="found 2 links out of it") as caught:
        run(tmp_path / "links")
    assert "what the links lead to" in caught.value.hint


def test_a_cell_named_like_an_unfinished_file_is_seen_or_refused_by_name(tmp_path: Path) -> None:
    """A folder store never lists the files that it is writing."""
    source = folder(tmp_path / "cells", {**CELLS, "Uninfected/.tmp-1-aa.png": b"a", "Uninfected/.tmp-1-0123abcd": b"b"})
    store = FolderStore(tmp_path / "store")
    result = import_cells(str(source), store, Workspace(tmp_path / "home"))
    assert result.skipped == {"impossible name": 1}
    assert result.written == len(list(store.list("labeled/"))) == len(CELLS) + 1


def test_files_that_cannot_be_read_do_not_stop_the_others(
    run: Import, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # The tests may run as root, whom no mode stops.
    read_bytes = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "a.png":
            raise PermissionError(13, "Permission denied")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    caplog.set_level(logging.INFO)
    result = run(folder(tmp_path / "cells", CELLS))
    assert (result.written, result.skipped) == (2, {"unreadable": 1})
    assert "Permission denied" in caplog.text


def test_a_folder_that_cannot_be_listed(run: Import, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise PermissionError(13, "Permission denied")

    folder(tmp_path / "cells", CELLS)
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UsageError, match=r"cannot list .*cells: Permission denied") as caught:
        run(tmp_path / "cells")
    assert "owner and mode" in caught.value.hint


def test_names_that_no_store_could_hold(run: Import, store: MemoryStore, tmp_path: Path) -> None:
    source = folder(tmp_path / "cells", CELLS | {"Parasitized/line\nbreak.png": b""})
    Path(f"{source}/Parasitized/latin\udce4.png").write_bytes(b"")
    assert run(source).skipped == {"impossible name": 2}
    long = zipped(tmp_path / "long.zip", {f"Uninfected/{'n' * 300}.png": b"", f"Uninfected/{'d/' * 600}x.png": b""})
    assert run(long).skipped == {"name too long": 2}
    assert store.objects == STORED


def test_a_file_and_a_folder_of_one_name(run: Import, store: MemoryStore, tmp_path: Path) -> None:
    result = run(zipped(tmp_path / "x.zip", {"Uninfected/a/b.png": b"b", "Uninfected/a": b"a"}))
    assert result.skipped == {"inside a folder named like another file": 1}
    assert list(store.objects) == ["labeled/Uninfected/a"]


def test_progress_ends_at_the_total(store: MemoryStore, tmp_path: Path) -> None:
    seen: list[ImportProgress] = []
    files = {f"Parasitized/{number}.png": b"x" for number in range(500)}
    import_cells(str(folder(tmp_path / "cells", files)), store, Workspace(tmp_path), progress=seen.append)
    assert seen[-1] == ImportProgress("import", 500, 500, "cells")
    assert [event.done for event in seen] == sorted(event.done for event in seen)
    assert len(seen) < 50  # throttled: an event a cell would flood a terminal


def test_a_store_that_fails_in_the_middle_is_reported(tmp_path: Path) -> None:
    class Failing(MemoryStore):
        def create(self, key: str, data: bytes) -> bool:
            if len(self.objects) >= 100:
                raise StoreUnreachable("the store went away")
            return super().create(key, data)

    store = Failing()
    files = {f"Parasitized/{number}.png": b"x" for number in range(2000)}
    with pytest.raises(StoreUnreachable, match="went away"):
        import_cells(str(folder(tmp_path / "cells", files)), store, Workspace(tmp_path))
    assert 100 <= len(store.objects) < 200


# Zip files are hostile.


def member(name: str, *, mode: int = 0, method: int = zipfile.ZIP_STORED) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr, info.compress_type = mode << 16, method
    return info


def hostile(path: Path, *members: tuple[zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in CELLS.items():
            archive.writestr(name, data)
        for info, data in members:
            archive.writestr(info, data)
    return path


@pytest.mark.parametrize(
    ("info", "data", "reason"),
    [
        (member("../../evil.png"), b"", "unsafe name"),
        (member("Parasitized/../../evil.png"), b"", "unsafe name"),
        (member("/etc/Parasitized/evil.png"), b"", "unsafe name"),
        (member("//Parasitized/evil.png"), b"", "unsafe name"),
        (member("C:/Parasitized/evil.png"), b"", "unsafe name"),
        (member("C:evil.png"), b"", "unsafe name"),
        (member("Parasitized\\..\\evil.png"), b"", "unsafe name"),
        (member("Parasitized/\x1b[31m.png"), b"", "unsafe name"),
        (member("Parasitized/link.png", mode=stat.S_IFLNK | 0o777), b"/etc/passwd", "symbolic link"),
        (member("Parasitized/tty.png", mode=stat.S_IFCHR | 0o666), b"", "not a plain file"),
        (member("Parasitized/lzma.png", method=zipfile.ZIP_LZMA), b"x", "unknown compression"),
        (member("Parasitized/large.png"), bytes(20_000_001), "larger than 20 MB"),
        (
            member("Parasitized/bomb.png", method=zipfile.ZIP_DEFLATED),
            bytes(10_000_000),
            "unpacks to more than 100 times its size",
        ),
    ],
)
def test_hostile_members_are_left_out(
    info: zipfile.ZipInfo,
    data: bytes,
    reason: str,
    store: MemoryStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Deep in a folder of the test's own: whatever climbs out of the zip's, the home's or the current one is seen.
    inner = tmp_path / "two" / "deep"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    path = hostile(inner / "x.zip", (info, data))
    result = import_cells(str(path), store, Workspace(inner / "home"))
    assert result.skipped == {reason: 1}
    assert result.written == 3
    assert store.objects == STORED
    assert [found for found in tmp_path.rglob("*") if found.is_file()] == [path]


def patched(path: Path, name: str, *, offset: int, value: bytes, everywhere: bool = True) -> None:
    """Overwrite a field of a member's central directory entry (``offset`` from its start), and of its own header."""
    data = bytearray(path.read_bytes())
    central = data.rindex(b"PK\x01\x02", 0, data.rindex(name.encode()))
    local = struct.unpack_from("<I", data, central + 42)[0]
    data[central + offset : central + offset + len(value)] = value
    if everywhere:
        data[local + offset - 2 : local + offset - 2 + len(value)] = value
    path.write_bytes(data)


def test_encrypted_members(run: Import, store: MemoryStore, tmp_path: Path) -> None:
    path = hostile(tmp_path / "x.zip", (member("Uninfected/secret.png"), b"x" * 50))
    patched(path, "Uninfected/secret.png", offset=8, value=b"\x01\x00")
    assert run(path).skipped == {"encrypted": 1}
    assert store.objects == STORED


def test_a_false_size(run: Import, store: MemoryStore, tmp_path: Path) -> None:
    bomb = (member("Uninfected/small.png", method=zipfile.ZIP_DEFLATED), bytes(900_000))
    path = hostile(tmp_path / "x.zip", bomb)
    patched(path, "Uninfected/small.png", offset=24, value=struct.pack("<I", 100))
    assert run(path).skipped == {"unreadable": 1}
    assert store.objects == STORED


def test_members_that_share_their_bytes(run: Import, tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("Parasitized/a.png", os.urandom(10_000))
        (first,) = archive.infolist()
        for number in range(50):
            other = member(f"Parasitized/{number}.png")
            other.CRC, other.file_size, other.compress_size = first.CRC, first.file_size, first.compress_size
            other.header_offset, other.create_system = first.header_offset, first.create_system
            archive.filelist.append(other)
    with pytest.raises(DataInvalid, match="its members overlap"):
        run(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_member_does_not_stop_the_others(
    method: int, run: Import, store: MemoryStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = bytes(range(256)) * 40
    path = hostile(tmp_path / "x.zip", (member("Uninfected/bad.png", method=method), content))
    data = bytearray(path.read_bytes())
    start = data.index(b"Uninfected/bad.png") + 30
    data[start : start + 20] = b"\xff" * 20
    path.write_bytes(data)
    result = run(path)
    assert (result.written, result.skipped) == (3, {"unreadable": 1})
    assert "unreadable: Uninfected/bad.png" in caplog.text
    assert store.objects == STORED


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1f\x8b\x08\x00" + bytes(100), b"PK\x03\x04" + bytes(100)])
def test_no_zip_file(content: bytes, run: Import, tmp_path: Path) -> None:
    (tmp_path / "cells.zip").write_bytes(content)
    with pytest.raises(DataInvalid, match="is not a valid zip file, or its end is missing") as caught:
        run(tmp_path / "cells.zip")
    assert "Parasitized/*.png" in caught.value.hint


def test_a_zip_that_was_cut_off(run: Import, tmp_path: Path) -> None:
    path = zipped(tmp_path / "cells.zip", {name: data * 1000 for name, data in CELLS.items()})
    whole = path.read_bytes()
    for size in (len(whole) - 1, len(whole) // 2, 10):
        path.write_bytes(whole[:size])
        with pytest.raises(DataInvalid, match="its end is missing"):
            run(path)


def test_a_zip_that_cannot_be_opened(run: Import, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> io.BytesIO:
        raise PermissionError(13, "Permission denied")

    path = zipped(tmp_path / "cells.zip", CELLS)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UsageError, match=r"cannot read .*Permission denied"):
        run(path)


def test_a_zip_made_by_macos_keeps_its_names(run: Import, store: MemoryStore, tmp_path: Path) -> None:
    path = zipped(tmp_path / "cells.zip", CELLS)
    data = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        position = -1
        while (position := data.find(mark, position + 1)) >= 0:
            data[position + at + 1] &= ~0x08  # the flag that says: this name is UTF-8
    path.write_bytes(data)
    run(path)
    assert store.objects == STORED


def test_a_large_file_of_a_folder(
    run: Import, store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cell_sources, "MAX_FILE_BYTES", 1000)
    result = run(folder(tmp_path / "cells", CELLS | {"Parasitized/video.mp4": bytes(1001)}))
    assert result.skipped == {"larger than 20 MB": 1}
