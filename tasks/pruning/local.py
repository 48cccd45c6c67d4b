"""What this machine keeps and can make again: caches, packs, work folders, and what killed processes left behind."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pyarrow.compute as pc

from infra.local.facts_cache import FactsCache
from infra.local.packed_cells import PackedCellCache, keep_packed_cells
from infra.local.temporary import abandoned_folders
from infra.store.keys import OURS
from tasks.cells.near_pairs import pairs_path
from tasks.cells.packing import packed_cells_place
from tasks.context import Context
from tasks.pruning.removal import CACHES, LEFTOVERS, REPORTS, TRAININGS, Removal, left_behind, of_path
from tasks.snapshots import tables as snapshots
from tasks.snapshots.fetch_log import Journal
from validation.digest import digest
from validation.images.facts import FACTS_VERSION
from validation.records import Member

DAY = 86_400.0
# The packed cells or the facts are rewritten when this share of them is of images that are gone.
STALE_SHARE = 0.25

# An area, a path in it, and why it is not needed.
Unneeded = Iterator[tuple[str, Path, str]]


def local_removals(context: Context, needed: Collection[str] | None, gone: Collection[str]) -> Iterator[Removal]:
    """Yield what this machine need not keep.

    ``needed``: SHA-256 of images that must stay though the store may have lost them; None: not known, so that images
    are removed for being too many only.
    ``gone``: keys of the store that were just removed, or would be.
    """
    live = _live(context)
    if live is not None:
        yield from _stale_cells(context, live)
        yield from _stale_facts(context, live)
    for unneeded in (
        _other_versions(context) if live is not None else (),
        _objects(context, live, needed) if live is not None else (),
        _packs(context),
        _old(context),
        _pages(context, gone),
        _work_folders(context),
        _leftovers(context),
    ):
        for area, path, why in unneeded:
            yield from of_path(area, path, why)


def _journal(context: Context) -> Path:
    return context.workspace.home / "cache" / f"pulled-{digest(context.store.uri)}.jsonl"


def _facts_path(context: Context) -> Path:
    return context.workspace.home / "cache" / f"facts-{FACTS_VERSION}.sqlite"


def _live(context: Context) -> set[str] | None:
    """Return the SHA-256 of all images in the newest snapshot or fetched since; None without a snapshot."""
    snapshot = snapshots.latest(context)
    rows = snapshots.rows_of(context, snapshot) if snapshot else None
    if rows is None:
        return None
    return {*pc.unique(rows["sha256"]).to_pylist(), *Journal(_journal(context)).read()["sha256"].to_pylist()}


def _stale_cells(context: Context, live: Collection[str]) -> Iterator[Removal]:
    """Yield the packed cells of images that are gone, where they are many."""
    place, row_bytes = packed_cells_place(context)
    if not place.is_dir():
        return
    with PackedCellCache(place, row_bytes) as cache:
        rows, stale = cache.rows, cache.stale(live)
    if stale > rows * STALE_SHARE:
        why = f"{stale:,} of {rows:,} packed cells are of images that are not in the store any more"
        yield Removal(CACHES, str(place), stale * row_bytes, why, partial(keep_packed_cells, place, row_bytes, live))


def _stale_facts(context: Context, live: Collection[str]) -> Iterator[Removal]:
    """Yield the measured facts of images that are gone, where they are many."""
    path = _facts_path(context)
    if not path.is_file():
        return
    with FactsCache(path) as facts:
        rows, stale = facts.count(), facts.stale(live)

    def drop() -> None:
        with FactsCache(path) as facts:
            facts.drop(stale)

    if stale and len(stale) > rows * STALE_SHARE:
        size = int(path.stat().st_size * len(stale) / max(rows, 1))
        yield Removal(
            CACHES, str(path), size, f"facts of {len(stale):,} images that are not in the store any more", drop
        )


def _other_versions(context: Context) -> Unneeded:
    place, facts = packed_cells_place(context)[0], _facts_path(context)
    for path in _entries(context, "cells"):
        if path != place and not path.name.startswith(".tmp-"):
            yield CACHES, path, "cells packed at another size, or by another Pillow"
    for path in (*facts.parent.glob("facts-*.sqlite*"), *facts.parent.glob("near-duplicates-*.npz")):
        if not path.name.startswith((facts.name, pairs_path(context).name)):
            yield CACHES, path, "facts measured by other rules"


def _objects(context: Context, live: Collection[str], needed: Collection[str] | None) -> Unneeded:
    """Yield fetched images that the store has no more, and the oldest of more than ``prune.cache_gb``."""
    left: list[tuple[float, int, Path]] = []
    for path in (context.workspace.home / "cache" / "objects").glob("*/*"):
        name = path.parent.name + path.name
        if "." in name or (needed is not None and name in needed):
            continue
        if needed is not None and name not in live:
            yield CACHES, path, "an image that is not in the store any more"
            continue
        with suppress(OSError):
            stat = path.stat()
            left.append((stat.st_mtime, stat.st_size, path))
    over = sum(size for _, size, _ in left) - context.settings.prune.cache_gb * 1e9
    for _, size, path in sorted(left):
        if over <= 0:
            return
        over -= size
        yield CACHES, path, "more images than prune.cache_gb"


def _packs(context: Context) -> Unneeded:
    kept = context.settings.prune.packs
    for path in sorted((p for p in _entries(context, "packs") if p.suffix == ".npy"), key=_age)[kept:]:
        if not path.name.startswith(".tmp-"):
            yield CACHES, path, f"a pack that is not among the newest {kept}"


def _old(context: Context) -> Unneeded:
    """Yield downloads, and journals of other stores and rebuilt snapshots, that have not been used for long."""
    days, journal = context.settings.prune.downloads_days, _journal(context)
    others = [path for path in journal.parent.glob("*-*.jsonl") if path != journal]
    for path in [*_entries(context, "downloads"), *others]:
        if _age(path) > days * DAY:
            yield CACHES, path, f"not used for {days:g} days"


def _pages(context: Context, gone: Collection[str]) -> Unneeded:
    """Yield copies of Data Docs whose original was removed from the store."""
    copies = sorted((context.workspace.home / "validations").glob("*.docs.html"))
    keys = {info.key for info in context.store.list(f"{OURS}validations/")} - set(gone) if copies else set()
    stored = {key.rpartition("/")[2] for key in keys}
    for path in copies:
        if path.name not in stored:
            yield REPORTS, path, "a copy of Data Docs that were removed from the store"


def _work_folders(context: Context) -> Unneeded:
    days = context.settings.prune.scratch_days
    scratch = context.workspace.home / "scratch"
    for path in sorted(scratch.iterdir()) if scratch.is_dir() else ():
        if path.name.startswith("train-") and context.records.find(Member, path.name.removeprefix("train-")):
            yield TRAININGS, path, "its candidate is stored"
        elif _age(path) > days * DAY:
            yield TRAININGS, path, f"it failed, or was killed, over {days:g} days ago"


def _leftovers(context: Context) -> Unneeded:
    home = context.workspace.home
    folders = [home, *(home / name for name in ("reports", "validations", "scratch"))]
    paths = {path for folder in folders for path in folder.glob(".tmp-*")}
    paths.update((home / "cache").rglob("*.tmp-*"))
    paths.update(path for path, _ in context.store.unfinished())
    for path in sorted(filter(left_behind, paths)):
        yield LEFTOVERS, path, "its writer was killed"
    for path in abandoned_folders():
        yield LEFTOVERS, path, "a temporary folder whose process was killed"


def _entries(context: Context, folder: str) -> list[Path]:
    return sorted((context.workspace.home / "cache" / folder).glob("*"))


def _age(path: Path) -> float:
    """Return the seconds since a file, or anything in a folder, was written; 0 for what is already gone."""
    try:
        times = [path.stat().st_mtime, *(inner.stat().st_mtime for inner in path.rglob("*"))]
    except OSError:
        return 0.0
    return time.time() - max(times)
