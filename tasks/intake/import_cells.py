"""Import labelled cells into the store, from a folder, a zip file or its URL, or a bucket.

Bytes are stored unchanged: validation judges whether they are cells. Stored objects are never overwritten, so an import
can be run again at any time and only adds what is missing.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from infra.local.files import Workspace
from infra.store.base import ObjectInfo, Store
from infra.store.keys import LABELED, is_junk, is_odd
from infra.store.opening import open_store
from tasks.intake.download import ImportProgress, Report, download, shown_url, throttled
from tasks.intake.labels import by_label
from tasks.intake.sources import OUTSIDE, SourceFile, bucket_files, folder_files, zip_files
from validation.errors import DataInvalid, UsageError
from validation.images.decode import placeholder
from validation.records import CLASSES
from validation.redaction import printable

log = logging.getLogger(__name__)

NLM_URL = "https://data.lhncbc.nlm.nih.gov/public/Malaria/cell_images.zip"

_WORKERS = 16
_NAMED = 10  # files named in a warning, of each reason
_UNKNOWN_FOLDERS = 20  # reported by name; a hostile archive could hold any number
_DEEPEST = 2  # enclosing folders around the class folders
_KEY_BYTES, _NAME_BYTES = 1024, 255  # the limits of S3 and of common file systems
_PLAIN_DEPTH = 2  # slashes in labeled/<Class>/<name>
_PICTURES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".heic"})
_LAYOUT = "expected " + " and ".join(f"{name}/*.png" for name in CLASSES) + ", at the top or in one enclosing folder"

_JUNK = "left by a file manager"
_CONFLICT = "exists with other content"
_UNKNOWN = "unknown class folder: "
_WRITTEN, _UNCHANGED = "written", "unchanged"


@dataclass(frozen=True)
class ImportResult:
    """What became of every file of a source: ``found == written + unchanged + sum(skipped.values())``.

    ``source`` is the source without secrets, ``bytes`` counts what was written, ``skipped`` is reason -> files.
    """

    source: str
    found: int
    written: int
    unchanged: int
    skipped: dict[str, int]
    bytes: int


@dataclass(frozen=True)
class Labelling:
    """How a source says what class a cell is of: by the folder that it is in, unless ``table`` lists the files.

    Attributes:
        classes: names other than those of ``CLASSES``, to the class that each stands for.
        table: a CSV or Parquet file with one row for each image.
        columns: the table's columns of the image's file and of its label.
    """

    classes: Mapping[str, str] = field(default_factory=dict)
    table: Path | None = None
    columns: tuple[str, str] = ("image", "label")


def import_cells(
    source: str,
    store: Store,
    workspace: Workspace,
    *,
    labelling: Labelling = Labelling(),
    bucket: Callable[[str], Store] = open_store,
    progress: Report = lambda _: None,
) -> ImportResult:
    """Copy the cells of ``source`` to ``labeled/<Class>/<name>``, except those that are there already.

    Args:
        source: see ``open_cells``.
        store: where the cells go.
        workspace: where a download is kept.
        labelling: what class a file is of.
        bucket: opens the store that a source names by its URI.
        progress: called at most every 0.2 s, and at the end of a stage.

    Raises:
        UsageError: there is no such source, or no class folder in it, or folders of images without a class.
        DataInvalid: it is not a valid zip file.
        Unreachable: the store, or the server or bucket of the source.
    """
    # A store that cannot be reached should say so before a long download, not after it.
    next(iter(store.list(LABELED)), None)
    with open_cells(source, workspace, labelling=labelling, bucket=bucket, progress=progress) as cells:
        return cells.copy_to(store)


@contextmanager
def open_cells(
    source: str,
    workspace: Workspace,
    *,
    labelling: Labelling = Labelling(),
    bucket: Callable[[str], Store] = open_store,
    progress: Report = lambda _: None,
) -> Iterator[OpenedCells]:
    """Open a source and choose what is imported of it; its files are readable while the context is open.

    ``source`` is a folder or zip of ``<Class>/<name>``, also within one enclosing folder; an http(s) URL of such a zip;
    a bucket's ``s3://``, ``gs://`` or ``az://`` URI; or "nlm", the public archive. Raises like ``import_cells``.
    """
    url = NLM_URL if source == "nlm" else source
    with _files(url, workspace, bucket, progress) as files:
        yield OpenedCells(shown_url(url) if "://" in url else url, files, labelling, progress)


@contextmanager
def _files(
    source: str, workspace: Workspace, bucket: Callable[[str], Store], progress: Report
) -> Iterator[Sequence[SourceFile]]:
    """List the source's files, readable while the context is open."""
    if source.startswith(("http://", "https://")):
        path = download(source, workspace.home / "cache" / "downloads", progress=progress)
        try:
            with zip_files(path) as files:
                yield files
        except DataInvalid:
            # Otherwise it would fail every later import as well.
            path.unlink(missing_ok=True)
            raise
        return
    if "://" in source:
        yield bucket_files(bucket(source))
        return
    path = Path(source).expanduser()
    if not source.strip():  # Path("") is the current folder
        raise UsageError("no source is named", f"{_LAYOUT}; or a zip of that, its URL, a bucket, or `nlm`")
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError as error:
        raise UsageError(f"cannot open {path}: {error.strerror}", "check the owner and mode of its folders") from error
    if is_folder:
        yield folder_files(path)
    elif is_file:
        with zip_files(path) as files:
            yield files
    else:
        raise UsageError(f"no folder or file at {path}", f"{_LAYOUT}; or a zip of that, its URL, a bucket, or `nlm`")


class OpenedCells:
    """The files of one source: the key of each that is imported, and the outcome of each."""

    def __init__(self, source: str, files: Sequence[SourceFile], labelling: Labelling, progress: Report) -> None:
        self.source, self.progress = source, throttled(progress)
        self.skipped: defaultdict[str, list[str]] = defaultdict(list)
        self.done = {_WRITTEN: 0, _UNCHANGED: 0}
        self.bytes = 0
        self.found = len(files)
        named = {**{name: name for name in CLASSES}, **labelling.classes}
        self.classes = {name.casefold(): label for name, label in named.items()}
        if labelling.table is not None:
            files = by_label(files, labelling.table, *labelling.columns)
        self.chosen = self._choose(files, by_folder=labelling.table is None)

    def _choose(self, files: Sequence[SourceFile], *, by_folder: bool) -> dict[str, SourceFile]:
        """Return the good files by their keys; count the others as skipped."""
        around = _enclosing(self.source, files, self.classes) if by_folder else ()
        chosen: dict[str, SourceFile] = {}
        unknown: Counter[str] = Counter()
        for file in files:
            label, name = _split(file.path, around)
            key = f"{LABELED}{self.classes.get(label.casefold(), label)}/{name}"
            if reason := self._problem(file, label, key) or ("twice in the source" if key in chosen else ""):
                self.skipped[reason].append(file.path)
                is_picture = PurePosixPath(name).suffix.lower() in _PICTURES or not by_folder
                unknown[label] += is_picture and reason.startswith(_UNKNOWN)
            else:
                chosen[key] = file
        self._refuse_half(chosen, +unknown)
        # A store that is a folder cannot hold both a file "a" and a file "a/b".
        nested = (key for key in chosen if key.count("/") > _PLAIN_DEPTH)
        for key in [key for key in nested if any(str(above) in chosen for above in PurePosixPath(key).parents)]:
            self.skipped["inside a folder named like another file"].append(chosen.pop(key).path)
        return chosen

    def _refuse_half(self, chosen: Collection[str], unknown: Counter[str]) -> None:
        """Refuse a source in which a class is missing while images are under a name that is no class's."""
        lacking = [name for name in CLASSES if not any(key.startswith(f"{LABELED}{name}/") for key in chosen)]
        if lacking and unknown:
            found = ", ".join(f"{printable(name)} ({count:,} images)" for name, count in unknown.most_common(_NAMED))
            raise UsageError(
                f"no {' and no '.join(lacking)} cells in {self.source}; there are images under other names: {found}",
                _rename(unknown.most_common(1)[0][0], lacking[0]),
            )

    def _problem(self, file: SourceFile, label: str, key: str) -> str:
        if is_junk(file.path):
            return _JUNK
        if file.problem:
            return file.problem
        if not label:
            return "outside the class folders"
        if label.casefold() not in self.classes:
            reason = f"{_UNKNOWN}{printable(label)}"
            known = sum(name.startswith(_UNKNOWN) for name in self.skipped)
            return reason if reason in self.skipped or known < _UNKNOWN_FOLDERS else f"{_UNKNOWN}(others)"
        if is_odd(key):
            return "impossible name"
        parts = key.encode().split(b"/")
        return "name too long" if len(key.encode()) > _KEY_BYTES or max(map(len, parts)) > _NAME_BYTES else ""

    def copy_to(self, store: Store) -> ImportResult:
        """Write what the store lacks, several files at a time."""
        chosen, stored = self.chosen, self._stored(store)
        pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="import")
        try:
            outcomes = pool.map(lambda key: _put(store, key, chosen[key], stored.get(key)), chosen)
            for number, (file, (outcome, size)) in enumerate(zip(chosen.values(), outcomes, strict=True), 1):
                if outcome in self.done:
                    self.done[outcome] += 1
                    self.bytes += size
                else:
                    self.skipped[outcome].append(file.path)
                self.progress(ImportProgress("import", number, len(chosen), "cells"))
        finally:
            pool.shutdown(cancel_futures=True)
        return self._result()

    def _stored(self, store: Store) -> dict[str, ObjectInfo]:
        folders = {key.removeprefix(LABELED).partition("/")[0] for key in self.chosen}
        infos = (info for folder in sorted(folders) for info in store.list(f"{LABELED}{folder}/"))
        return {info.key: info for info in infos if info.key in self.chosen}

    def _result(self) -> ImportResult:
        """Return the counts, and log what was left out."""
        for reason, paths in sorted(self.skipped.items()):
            level = logging.INFO if reason == _JUNK else logging.WARNING
            named = ", ".join(printable(path) for path in paths[:_NAMED])
            more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
            log.log(level, "skipped %d of %s, %s: %s%s", len(paths), self.source, reason, named, more)
        skipped = {reason: len(paths) for reason, paths in sorted(self.skipped.items())}
        return ImportResult(self.source, self.found, self.done[_WRITTEN], self.done[_UNCHANGED], skipped, self.bytes)


def _put(store: Store, key: str, file: SourceFile, stored: ObjectInfo | None) -> tuple[str, int]:
    """Return the outcome of one file, and how many bytes were written."""
    if stored and stored.size != file.size:
        return _CONFLICT, 0
    try:
        data = file.read()
    except DataInvalid as error:
        log.info("%s", error.message)
        return "unreadable", 0
    # What is stored stays: an empty file would keep the image out for ever.
    if reason := placeholder(data):
        return reason, 0
    # Another process may have written the key since it was listed: create() never overwrites.
    if stored is None and store.create(key, data):
        return _WRITTEN, len(data)
    # A store's ETag is the MD5 of the content or unrelated to it; then the bytes are compared.
    if stored and stored.etag == hashlib.md5(data, usedforsecurity=False).hexdigest():
        return _UNCHANGED, 0
    return (_UNCHANGED if store.get(key) == data else _CONFLICT), 0


def _enclosing(source: str, files: Sequence[SourceFile], classes: Collection[str]) -> tuple[str, ...]:
    """Return the folders that enclose the class folders, possibly none; refuse several sets of class folders."""
    named = [file for file in files if not is_odd(file.path) and not is_junk(file.path)]
    folders = [PurePosixPath(file.path).parent.parts for file in named]
    for depth in range(_DEEPEST + 1):
        around = {parts[:depth] for parts in folders if len(parts) > depth and parts[depth].casefold() in classes}
        if len(around) > 1:
            names = ", ".join(sorted(printable("/".join(parts)) for parts in around)[:_NAMED])
            raise UsageError(f"several folders of {source} hold class folders: {names}", "import them one by one")
        if around:
            return around.pop()
    top = sorted({parts[0] for parts in folders if parts})
    links = sum(file.problem == OUTSIDE for file in named)
    loose = sum(not parts for parts in folders) - links
    counts = [f"{count} {what}" for count, what in ((loose, "loose files"), (links, "links out of it")) if count > 0]
    content = ", ".join([f"{printable(name)}/" for name in top[:_NAMED]] + counts)
    inside = Path(source).name.casefold() in classes
    hint = _rename(top[0] if top else "FOLDER")
    if inside or links:
        hint = (
            "name the folder that holds it, so that the class is known" if inside else "import what the links lead to"
        )
    raise UsageError(f"no class folder in {source}: {_LAYOUT}; found {content or 'nothing'}", hint)


def _rename(name: str, label: str = CLASSES[0]) -> str:
    name = printable(name)
    return f"name the class of each: --class '{name}={label}', or the setting RETRAIN_CLASSES='{name}={label},...'"


def _split(path: str, around: tuple[str, ...]) -> tuple[str, str]:
    """Return the class folder of a path, empty when it is in none, and the name within it."""
    parts = tuple(path.split("/"))
    label, slash, name = "/".join(parts[len(around) :]).partition("/")
    return (label, name) if slash and parts[: len(around)] == around else ("", path)
