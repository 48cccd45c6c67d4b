"""What this machine keeps and can make again: caches, packs, work folders, and what killed processes left behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow.compute as pc

from infra.local.facts_cache import FactsCache
from infra.local.packed_cells import PackedCellCache, clear_shelf
from infra.local.temporary import abandoned_folders
from infra.store.keys import OURS
from tasks.cells.packing import shelf_place
from tasks.context import Context
from tasks.pruning.removal import CACHES, LEFTOVERS, REPORTS, TRAININGS, Removal, left_behind, of_path
from tasks.snapshots import tables as snapshots
from tasks.snapshots.fetch_log import Journal
from validation.digest import digest
from validation.images.facts import FACTS_VERSION
from validation.records import Candidate

DAY = 86_400.0
# A shelf or the kept facts are written anew when so much of them is of images that are gone.
STALE_SHARE = 0.25


def local_removals(context: Context, held: Collection[str] | None, gone: Collection[str]) -> Iterator[Removal]:
    """Yield what this machine need not keep.

    ``held``: SHA-256 of images that must stay though the store may have lost them; None: not known, so none goes for
    being lost, only for being too many.
    ``gone``: keys of the store that were removed just now, or would be.
    """
    living = _living(context)
    if living is not None:
        yield from _shelves(context, living)
        yield from _facts(context, living)
        yield from _objects(context, living, held)
    yield from _packs(context)
    yield from _old(context)
    yield from _pages(context, gone)
    yield from _work_folders(context)
    yield from _leftovers(context)


def _living(context: Context) -> set[str] | None:
    """Return the SHA-256 of all that is in the newest snapshot, or was fetched since; None when there is none."""
    snapshot = snapshots.latest(context)
    rows = snapshots.rows_of(context, snapshot) if snapshot else None
    if rows is None:
        return None
    journal = Journal(context.workspace.home / "cache" / f"pulled-{digest(context.store.uri)}.jsonl")
    return {*pc.unique(rows["sha256"]).to_pylist(), *journal.read()["sha256"].to_pylist()}


def _objects(context: Context, living: Collection[str], held: Collection[str] | None) -> Iterator[Removal]:
    """Fetched images: those that the store no longer holds, and the oldest of more than ``prune.cache_gb``."""
    left: list[tuple[float, int, Path]] = []
    for path in (context.workspace.home / "cache" / "objects").glob("*/*"):
        name = path.parent.name + path.name
        if "." in name or (held is not None and name in held):
            continue
        if held is not None and name not in living:
            if (removal := of_path(CACHES, path, "an image that is not in the store any more")) is not None:
                yield removal
            continue
        with suppress(OSError):
            stat = path.stat()
            left.append((stat.st_mtime, stat.st_size, path))
    over = sum(size for _, size, _ in left) - context.settings.prune.cache_gb * 1e9
    for _, size, path in sorted(left):
        if over <= 0:
            return
        over -= size
        if (removal := of_path(CACHES, path, "more images than prune.cache_gb")) is not None:
            yield removal


def _shelves(context: Context, living: Collection[str]) -> Iterator[Removal]:
    """Packed cells: of another size or by another Pillow; and of images that are gone, once they are many."""
    current, row_bytes = shelf_place(context)
    for path in _entries(context, "cells"):
        if path != current and not path.name.startswith(".tmp-"):
            yield from _one(CACHES, path, "cells packed at another size, or by another Pillow")
    if not current.is_dir():
        return
    with PackedCellCache(current, row_bytes) as shelf:
        rows, stale = shelf.rows, shelf.stale(living)
    if stale > rows * STALE_SHARE:
        why = f"{stale:,} of {rows:,} packed cells are of images that are not in the store any more"
        yield Removal(CACHES, str(current), stale * row_bytes, why, lambda: clear_shelf(current, row_bytes, living))


def _facts(context: Context, living: Collection[str]) -> Iterator[Removal]:
    """What was measured of images: by an older version, or of images that are gone, once they are many."""
    current = context.workspace.home / "cache" / f"facts-{FACTS_VERSION}.sqlite"
    for path in (context.workspace.home / "cache").glob("facts-*.sqlite*"):
        if not path.name.startswith(current.name):
            yield from _one(CACHES, path, "facts that were measured by other rules")
    if not current.is_file():
        return
    with FactsCache(current) as kept:
        rows, stale = kept.count(), kept.stale(living)
    if stale and len(stale) > rows * STALE_SHARE:
        size = int(current.stat().st_size * len(stale) / max(rows, 1))
        why = f"facts of {len(stale):,} images that are not in the store any more"
        yield Removal(CACHES, str(current), size, why, _dropper(current, stale))


def _dropper(path: Path, digests: list[str]) -> Callable[[], None]:
    def drop() -> None:
        with FactsCache(path) as kept:
            kept.drop(digests)

    return drop


def _packs(context: Context) -> Iterator[Removal]:
    newest_first = sorted((p for p in _entries(context, "packs") if p.suffix == ".npy"), key=_age)
    for path in newest_first[context.settings.prune.packs :]:
        if not path.name.startswith(".tmp-"):
            yield from _one(CACHES, path, f"a pack that is not among the newest {context.settings.prune.packs}")


def _old(context: Context) -> Iterator[Removal]:
    """Downloads, and journals of other stores and of rebuilt snapshots, that nobody has touched for long."""
    days = context.settings.prune.downloads_days
    mine = f"pulled-{digest(context.store.uri)}.jsonl"
    journals = [p for p in (context.workspace.home / "cache").glob("*-*.jsonl") if p.name != mine]
    for path in [*_entries(context, "downloads"), *journals]:
        if _age(path) > days * DAY:
            yield from _one(CACHES, path, f"not used for {days:g} days")


def _pages(context: Context, gone: Collection[str]) -> Iterator[Removal]:
    """Copies of Data Docs whose original was removed; a link to them leads nowhere in the store either."""
    folder = context.workspace.home / "validations"
    if not folder.is_dir():
        return
    keys = {info.key for info in context.store.list(f"{OURS}validations/")} - set(gone)
    stored = {key.rpartition("/")[2] for key in keys}
    for path in sorted(folder.glob("*.docs.html")):
        if path.name not in stored:
            yield from _one(REPORTS, path, "a copy of Data Docs that were removed from the store")


def _work_folders(context: Context) -> Iterator[Removal]:
    days = context.settings.prune.scratch_days
    scratch = context.workspace.home / "scratch"
    for path in sorted(scratch.iterdir()) if scratch.is_dir() else ():
        if path.name.startswith("train-") and context.records.find(Candidate, path.name.removeprefix("train-")):
            yield from _one(TRAININGS, path, "its candidate is stored")
        elif _age(path) > days * DAY:
            yield from _one(TRAININGS, path, f"it failed, or was killed, over {days:g} days ago")


def _leftovers(context: Context) -> Iterator[Removal]:
    home = context.workspace.home
    places = [home, *(home / name for name in ("reports", "validations", "scratch"))]
    found = [path for place in places for path in place.glob(".tmp-*")]
    found += (home / "cache").rglob("*.tmp-*")
    found += [path for path, _ in context.store.unfinished()]
    for path in sorted({path for path in found if left_behind(path)}):
        yield from _one(LEFTOVERS, path, "its writer was killed")
    for path in abandoned_folders():
        yield from _one(LEFTOVERS, path, "a temporary folder whose process was killed")


def _one(area: str, path: Path, why: str) -> Iterator[Removal]:
    if (removal := of_path(area, path, why)) is not None:
        yield removal


def _entries(context: Context, folder: str) -> list[Path]:
    path = context.workspace.home / "cache" / folder
    return sorted(path.iterdir()) if path.is_dir() else []


def _age(path: Path) -> float:
    """Return the seconds since a file, or anything in a folder, was written; none for what has just gone."""
    try:
        times = [path.stat().st_mtime, *(inner.stat().st_mtime for inner in path.rglob("*"))]
    except OSError:
        return 0.0
    return time.time() - max(times)
