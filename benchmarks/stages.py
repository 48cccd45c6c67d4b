"""A night on a large bucket of which 1% is new: seconds, memory and bytes written of each stage, without any image.

    python -m benchmarks.stages [--cells 125000 250000 500000 1000000] [--nights 1] [--whole] [--folder WORK]

Keys, facts and squares are made up, as large as real ones (squares of 16 px); all else is the stages' own code, over a
folder. The old cells are there as after an earlier night: measured, compared with each other, packed. Each stage runs
in a process of its own. Shown are seconds of CPU and of the clock, the process's peak memory with its libraries, and
the bytes that it wrote into the store, and everywhere. ``--whole`` writes tables in one file, as before there were
parts. Of several nights the figures are means.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import pyarrow as pa

from infra.local.facts_cache import FactsCache
from infra.local.files import Workspace
from infra.local.packed_cells import PackedCellCache
from infra.settings.settings import Settings
from infra.store.base import Fetched, ObjectInfo
from infra.store.folder import FolderStore
from infra.store.keys import LABELED
from infra.store.records import Records
from tasks.cells.near_pairs import near_pairs, pairs_path
from tasks.cells.packing import packed_cells_place
from tasks.context import Context
from tasks.pack import pack
from tasks.pull import pull
from tasks.snapshots import tables as snapshots
from tasks.snapshots.listing import TEXT, list_cells
from tasks.split import split
from tasks.validate import validate
from validation.digest import sha256
from validation.images.facts import FACT_NAMES, FACTS_VERSION
from validation.records import Snapshot, Split, ValidationResult

CELLS_OF_A_PATIENT, SIDE = 140, 16


class MadeUpBucket(FolderStore):
    """A folder for what is written, and ``cells`` made-up objects; counts the bytes that are written."""

    def __init__(self, root: Path, cells: int) -> None:
        super().__init__(root)
        self.cells, self.written = cells, 0

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        if prefix != LABELED:
            yield from super().list(prefix)
            return
        for number in range(self.cells):
            yield ObjectInfo(key_of(number), 13_000, f"{number:032x}")

    def fetch(self, key: str) -> Fetched:
        if not key.startswith(LABELED):
            return super().fetch(key)
        number = int(key[-14:-4])
        return Fetched(content_of(number), f"{number:032x}")

    def stat(self, key: str) -> ObjectInfo | None:
        return super().stat(key) if not key.startswith(LABELED) else ObjectInfo(key, 13_000, f"{int(key[-14:-4]):032x}")

    def put(self, key: str, data: bytes) -> None:
        self.written += len(data)
        super().put(key, data)

    def create(self, key: str, data: bytes) -> bool:
        self.written += len(data)
        return super().create(key, data)


def key_of(number: int) -> str:
    """Return the key of a cell. New patients lie between the old ones, as in a bucket that several places fill."""
    patient = number // CELLS_OF_A_PATIENT
    name = f"C{patient * 7919 % 99_991}P{patient}ThinF_IMG_20260101_101010_cell_{number:010d}.png"
    return f"{LABELED}{('Parasitized', 'Uninfected')[number % 2]}/{name}"


def content_of(number: int) -> bytes:
    """Return the bytes of a cell: its own, and as many as the listing says."""
    return number.to_bytes(8, "big") * 1625


def context_in(home: Path, cells: int) -> Context:
    """Return the context of a night over so many cells."""
    store = MadeUpBucket(home / "store", cells)
    # Bounds are learned from made-up facts; what is measured is a night that accepts nearly all.
    settings = Settings(home=home, store=store.uri, training={"side": SIDE}, data={"min_contrast": 0})
    return Context(settings, store, Records(store), Workspace(home))


def facts_of(numbers: range) -> Iterator[tuple[str, str, str]]:
    """Yield a cell's SHA-256, that of its pixels, and its facts as the cache has them."""
    random = np.random.default_rng(numbers.start)
    values = random.normal(0, 1, (len(numbers), 8)).clip(-2, 2)
    waves = random.normal(0, 40, (len(numbers), 192)).clip(-127, 127).astype(np.int8)
    for number, value, wave in zip(numbers, values.tolist(), waves, strict=True):
        a, b, c, d, e, f, g, h = value
        pixels = sha256(b"pixels %d" % number)
        facts = (
            "PNG", "RGB", 140, 140, 13_000, pixels, 0.7 + 0.02 * a, 14_000 + int(800 * b), 1.1, 1, 0.2 + 0.01 * c,
            170 + 5 * d, 20 + 2 * e, 2 + 0.1 * f, 320 + 3 * g, 0.3 + 0.02 * h, wave.tobytes().hex(),
        )  # fmt: skip
        assert len(facts) == len(FACT_NAMES)
        yield sha256(content_of(number)), pixels, json.dumps(facts)


def leave_an_earlier_night(home: Path, cells: int) -> None:
    """Leave what a night over the old cells leaves, but for its models."""
    context = context_in(home, cells)
    listed = list_cells(context)
    numbers = [int(key[-14:-4]) for key in listed["key"].to_pylist()]
    rows = listed.append_column("sha256", pa.array((sha256(content_of(number)) for number in numbers), TEXT))
    rows = rows.append_column("first_seen", pa.array(["2026-01-01T00:00:00.000+00:00"] * len(rows), TEXT))
    rows = rows.select(snapshots.ROWS.names)
    snapshot = snapshots.save(context, rows, snapshots.snapshot_id(rows), before=None, parent=None)
    context.records.point("snapshot", snapshot)
    leave_measured(context, range(cells))
    pack(context, split(context, validate(context, snapshot)))


def leave_measured(context: Context, numbers: range) -> None:
    """Put facts, comparisons and squares of cells into the caches; new ones are compared by the night."""
    cache = context.workspace.home / "cache"
    compared = []
    with (
        FactsCache(cache / f"facts-{FACTS_VERSION}.sqlite") as facts,
        PackedCellCache(*packed_cells_place(context)) as squares,
    ):
        for start in range(numbers.start, numbers.stop, 10_000):
            made = list(facts_of(range(start, min(start + 10_000, numbers.stop))))
            facts.put({content: text for content, _, text in made})
            squares.append([(content, bytes.fromhex(content) * (SIDE * SIDE * 3 // 32)) for content, _, _ in made])
            compared += [pixels for _, pixels, _ in made]
    if not pairs_path(context).exists():
        with patch("tasks.cells.near_pairs.near_duplicates", lambda *_: []):
            near_pairs(context, pd.DataFrame({"pixels": compared, "fingerprint": ""}))


def stages() -> dict[str, Callable[[Context], object]]:
    """Return the stages of the night by name; each finds what the one before left."""

    def last(context: Context, name: str, record: Any) -> Any:
        return context.records.latest(name, record)

    return {
        "listing": list_cells,
        "pull": pull,
        "validate": lambda context: validate(context, last(context, "snapshot", Snapshot)),
        "of it near duplicates": _near_duplicates,
        "split": lambda context: split(context, last(context, "validation", ValidationResult)),
        "pack": lambda context: pack(context, last(context, "split", Split)),
    }


def _near_duplicates(context: Context) -> object:
    """Compare the new cells again, from the comparisons that the night before left."""
    validation = context.records.latest("validation", ValidationResult)
    assert validation
    kept = pairs_path(context).with_suffix(".before")
    pairs_path(context).write_bytes(kept.read_bytes())
    return near_pairs(context, context.records.load_table(validation.facts))


def measured(home: Path, cells: int, stage: str, whole: bool, results: Any) -> None:
    """Run one stage in this process and put down what it took."""
    _set_whole(whole)
    context = context_in(home, cells)
    assert isinstance(context.store, MadeUpBucket)
    work = stages()[stage]
    if stage == "validate":
        kept = pairs_path(context)
        kept.with_suffix(".before").write_bytes(kept.read_bytes())
    before, began, cpu = _written(), time.perf_counter(), _cpu()
    work(context)
    results.put(
        {
            "stage": stage,
            "seconds": time.perf_counter() - began,
            "cpu": _cpu() - cpu,
            "MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "store": context.store.written,
            "all": _written() - before,
        }
    )


def _cpu() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _written() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar"))


def _set_whole(whole: bool) -> None:
    import infra.store.records

    if whole:
        infra.store.records.WORTH_PARTS = 10**9


def prepared(home: Path, first: int, count: int, whole: bool) -> None:
    """Leave an earlier night, or measure what is new since."""
    _set_whole(whole)
    if first:
        leave_measured(context_in(home, first + count), range(first, first + count))
    else:
        leave_an_earlier_night(home, count)


def measure(cells: int, new: int, nights: int, whole: bool, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield what each stage of each night took."""
    spawn = multiprocessing.get_context("spawn")  # forked, a child would begin with this process's memory
    results = spawn.Queue()

    def in_child(target: Callable[..., None], *arguments: Any) -> None:
        child = spawn.Process(target=target, args=arguments)
        child.start()
        child.join()
        if child.exitcode:
            raise SystemExit(f"{target.__name__} {arguments} ended with {child.exitcode}")

    with tempfile.TemporaryDirectory(prefix="stages-", dir=folder) as name:
        home, old = Path(name), cells - new * nights
        in_child(prepared, home, 0, old, whole)
        for night in range(nights):
            there = old + night * new
            in_child(prepared, home, there, new, whole)
            for stage in stages():
                in_child(measured, home, there + new, stage, whole, results)
                yield {"cells": cells, "night": night, **results.get()}


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[125_000, 250_000, 500_000, 1_000_000])
    parser.add_argument("--new", type=float, default=0.01)
    parser.add_argument("--nights", type=int, default=1)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows = []
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}")
    print(
        "| cells, new | stage | CPU s | s | peak MiB | MB into the store | MB in all |\n|---|---|---|---|---|---|---|"
    )
    for cells in asked.cells:
        new = int(cells * asked.new)
        rows += (found := list(measure(cells, new, asked.nights, asked.whole, asked.folder)))
        table = pd.DataFrame(found).groupby("stage", sort=False).mean()
        for stage, row in table.iterrows():
            print(
                f"| {cells:,}, {new:,} | {stage} | {row['cpu']:.1f} | {row['seconds']:.1f} | {row['MiB']:,.0f} "
                f"| {row['store'] / 1e6:.2f} | {row['all'] / 1e6:.1f} |",
                flush=True,
            )
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
