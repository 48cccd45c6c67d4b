"""Import labelled cells into the store, from a folder, a zip file, or a zip's URL.

Bytes are stored unchanged: validation judges whether they are cells. Stored objects are never overwritten, so an import
can be run again at any time and only adds what is missing.
"""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from infra.local.files import Workspace
from infra.store.base import ObjectInfo, Store
from infra.store.keys import LABELED, is_junk, is_odd
from tasks.intake.download import ImportProgress, Report, download, shown_url, throttled
from tasks.intake.sources import SourceFile, folder_files, zip_files
from validation.errors import DataInvalid, UsageError
from validation.records import CLASSES

log = logging.getLogger(__name__)

NLM_URL = "https://data.lhncbc.nlm.nih.gov/public/Malaria/cell_images.zip"

_WORKERS = 16
_NAMED = 10  # files named in a warning, of each reason
_UNKNOWN_FOLDERS = 20  # reported by name; a hostile archive could hold any number
_DEEPEST = 2  # enclosing folders around the class folders
_KEY_BYTES, _NAME_BYTES = 1024, 255  # the limits of S3 and of common file systems
_PLAIN_DEPTH = 2  # slashes in labeled/<Class>/<name>
_CANONICAL = {name.casefold(): name for name in CLASSES}
_LAYOUT = "expected " + " and ".join(f"{name}/*.png" for name in CLASSES) + ", at the top or in one enclosing folder"

_JUNK = "left by a file manager"
_CONFLICT = "exists with other content"
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


def import_cells(source: str, store: Store, workspace: Workspace, *, progress: Report = lambda _: None) -> ImportResult:
    """Copy the cells of ``source`` to ``labeled/<Class>/<name>``, except those that are there already.

    Args:
        source: a folder or zip of ``<Class>/<name>``, also within one enclosing folder; an http(s) URL of such a zip;
            or "nlm", the public archive.
        store: where the cells go.
        workspace: where a download is kept.
        progress: called at most every 0.2 s, and at the end of a stage.

    Raises:
        UsageError: there is no such source, or no class folder in it.
        DataInvalid: it is not a valid zip file.
        Unreachable: the store, or the URL's server.
    """
    url = NLM_URL if source == "nlm" else source
    with _files(url, store, workspace, progress) as files:
        job = _Import(store, shown_url(url) if "://" in url else url)
        chosen = job.choose(files)
        job.transfer(chosen, throttled(progress))
        return job.result(len(files))


@contextmanager
def _files(source: str, store: Store, workspace: Workspace, progress: Report) -> Iterator[Sequence[SourceFile]]:
    """List the source's files, readable while the context is open."""
    if "://" in source:
        # A store that cannot be reached should say so before a long download, not after it.
        next(iter(store.list(LABELED)), None)
        path = download(source, workspace.home / "cache" / "downloads", progress=progress)
        try:
            with zip_files(path) as files:
                yield files
        except DataInvalid:
            # Otherwise it would fail every later import as well.
            path.unlink(missing_ok=True)
            raise
        return
    path = Path(source).expanduser()
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
        raise UsageError(f"no folder or file at {path}", f"{_LAYOUT}; or a zip of that, its URL, or `nlm`")


class _Import:
    """One import: the key of each file, and its outcome."""

    def __init__(self, store: Store, source: str) -> None:
        self.store, self.source = store, source
        self.skipped: defaultdict[str, list[str]] = defaultdict(list)
        self.done = {_WRITTEN: 0, _UNCHANGED: 0}
        self.bytes = 0

    def choose(self, files: Sequence[SourceFile]) -> dict[str, SourceFile]:
        """Return the good files by their keys; count the others as skipped."""
        depth = len(_enclosing(self.source, [file.path for file in files if not is_odd(file.path)]))
        chosen: dict[str, SourceFile] = {}
        for file in files:
            label, name = _split(file.path, depth)
            key = f"{LABELED}{_CANONICAL.get(label.casefold(), label)}/{name}"
            if reason := self._problem(file, label, key) or ("twice in the source" if key in chosen else ""):
                self.skipped[reason].append(file.path)
            else:
                chosen[key] = file
        # A store that is a folder cannot hold both a file "a" and a file "a/b".
        nested = (key for key in chosen if key.count("/") > _PLAIN_DEPTH)
        for key in [key for key in nested if any(str(above) in chosen for above in PurePosixPath(key).parents)]:
            self.skipped["inside a folder named like another file"].append(chosen.pop(key).path)
        return chosen

    def _problem(self, file: SourceFile, label: str, key: str) -> str:
        if is_junk(file.path):
            return _JUNK
        if file.problem:
            return file.problem
        if not label:
            return "outside the class folders"
        if label.casefold() not in _CANONICAL:
            reason = f"unknown class folder: {_printable(label)}"
            known = sum(name.startswith("unknown class folder: ") for name in self.skipped)
            return reason if reason in self.skipped or known < _UNKNOWN_FOLDERS else "unknown class folder: (others)"
        if is_odd(key):
            return "impossible name"
        parts = key.encode().split(b"/")
        return "name too long" if len(key.encode()) > _KEY_BYTES or max(map(len, parts)) > _NAME_BYTES else ""

    def transfer(self, chosen: Mapping[str, SourceFile], progress: Report) -> None:
        """Write what is missing, several files at a time."""
        stored = self._stored(chosen)
        pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="import")
        try:
            outcomes = pool.map(lambda key: self._put(key, chosen[key], stored.get(key)), chosen)
            for number, (file, (outcome, size)) in enumerate(zip(chosen.values(), outcomes, strict=True), 1):
                if outcome in self.done:
                    self.done[outcome] += 1
                    self.bytes += size
                else:
                    self.skipped[outcome].append(file.path)
                progress(ImportProgress("import", number, len(chosen), "cells"))
        finally:
            pool.shutdown(cancel_futures=True)

    def _stored(self, keys: Collection[str]) -> dict[str, ObjectInfo]:
        folders = {key.removeprefix(LABELED).partition("/")[0] for key in keys}
        infos = (info for folder in sorted(folders) for info in self.store.list(f"{LABELED}{folder}/"))
        return {info.key: info for info in infos if info.key in keys}

    def _put(self, key: str, file: SourceFile, stored: ObjectInfo | None) -> tuple[str, int]:
        """Return the outcome of one file, and how many bytes were written."""
        if stored and stored.size != file.size:
            return _CONFLICT, 0
        try:
            data = file.read()
        except DataInvalid as error:
            log.info("%s", error.message)
            return "unreadable", 0
        # Another process may have written the key since it was listed: create() never overwrites.
        if stored is None and self.store.create(key, data):
            return _WRITTEN, len(data)
        # A store's ETag is the MD5 of the content or unrelated to it; then the bytes are compared.
        if stored and stored.etag == hashlib.md5(data, usedforsecurity=False).hexdigest():
            return _UNCHANGED, 0
        return (_UNCHANGED if self.store.get(key) == data else _CONFLICT), 0

    def result(self, found: int) -> ImportResult:
        """Return the counts, and log what was left out."""
        for reason, paths in sorted(self.skipped.items()):
            level = logging.INFO if reason == _JUNK else logging.WARNING
            named = ", ".join(_printable(path) for path in paths[:_NAMED])
            more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
            log.log(level, "skipped %d of %s, %s: %s%s", len(paths), self.source, reason, named, more)
        skipped = {reason: len(paths) for reason, paths in sorted(self.skipped.items())}
        return ImportResult(self.source, found, self.done[_WRITTEN], self.done[_UNCHANGED], skipped, self.bytes)


def _enclosing(source: str, paths: Sequence[str]) -> tuple[str, ...]:
    """Return the folders that enclose the class folders, possibly none; refuse several sets of class folders."""
    folders = [PurePosixPath(path).parent.parts for path in paths if not is_junk(path)]
    for depth in range(_DEEPEST + 1):
        around = {parts[:depth] for parts in folders if len(parts) > depth and parts[depth].casefold() in _CANONICAL}
        if len(around) > 1:
            names = ", ".join(sorted(_printable("/".join(parts)) for parts in around)[:_NAMED])
            raise UsageError(f"several folders of {source} hold class folders: {names}", "import them one by one")
        if around:
            return around.pop()
    top = sorted({parts[0] for parts in folders if parts})
    loose = sum(not parts for parts in folders)
    content = ", ".join([f"{_printable(name)}/" for name in top[:_NAMED]] + [f"{loose} loose files"] * bool(loose))
    inside = Path(source).name.casefold() in _CANONICAL
    hint = "name the folder that holds it, so that the class is known" if inside else "label the cells by their folder"
    raise UsageError(f"no class folder in {source}: {_LAYOUT}; found {content or 'nothing'}", hint)


def _split(path: str, depth: int) -> tuple[str, str]:
    """Return the class folder of a path, empty when it is in none, and the name within it."""
    label, slash, name = "/".join(path.split("/")[depth:]).partition("/")
    return (label, name) if slash else ("", path)


def _printable(text: str) -> str:
    """Return untrusted text so that it is safe to show in one line of a terminal."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)[:120]
