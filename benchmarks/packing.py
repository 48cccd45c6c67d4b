"""Packing: how many cells a second, on a first night, and on one that brings a few new ones.

    python -m benchmarks.packing CELLS_FOLDER [--side 64] [--rounds 3] [--json FILE]

Each round packs all cells into an empty home folder (their bytes lie in its cache), packs them again from what was
kept, and then adds 5% that are new. Beside it, in the same run, one thread with Pillow alone, the way packing was
done before. Seconds are around the work; peak memory is the process's own, imports included.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from infra.local.files import Workspace
from infra.settings.settings import Settings
from infra.store.folder import FolderStore
from infra.store.records import Records
from tasks.cells.packing import write_pack
from tasks.context import Context


def _timed(count: int, work: Any) -> dict[str, float]:
    began, cpu = time.perf_counter(), time.process_time()
    work()
    seconds = time.perf_counter() - began
    return {"cells/s": count / seconds, "cpu ms": 1000 * (time.process_time() - cpu) / count}


def _with_pillow(context: Context, rows: pd.DataFrame, side: int) -> None:
    for sha256 in rows["sha256"]:
        with Image.open(io.BytesIO(context.workspace.read_object(sha256) or b"")) as image:
            rgb = np.asarray(image)
        edge = max(rgb.shape)
        square = np.zeros((edge, edge, 3), np.uint8)
        top, left = (edge - rgb.shape[0]) // 2, (edge - rgb.shape[1]) // 2
        square[top : top + rgb.shape[0], left : left + rgb.shape[1]] = rgb
        np.asarray(Image.fromarray(square).resize((side, side), Image.Resampling.BILINEAR))


def _round(folder: Path, side: int) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory() as home:
        settings, store = Settings(home=Path(home)), FolderStore(Path(home) / "store")
        context = Context(settings, store, Records(store), Workspace(Path(home)))
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [(str(path), context.workspace.write_object(path.read_bytes())) for path in files]
        rows = pd.DataFrame(names, columns=["key", "sha256"])
        most = rows.iloc[: int(len(rows) * 0.95)]

        def pack(some: pd.DataFrame) -> dict[str, float]:
            return _timed(len(some), lambda: write_pack(context, context.workspace.pack_path("p"), some, side))

        return {
            "Pillow, one thread": _timed(len(most), lambda: _with_pillow(context, most, side)),
            "first night": pack(most),
            "nothing new": pack(most),
            "5% new": pack(rows),
        }


def main() -> None:
    """Pack, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", type=Path)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rounds = [_round(given.cells, given.side) for _ in range(given.rounds)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"{cores} cores, load {load:.1f}, side {given.side}; medians of {given.rounds} (lowest-highest)")
    for name in rounds[0]:
        rates, cpu = [r[name]["cells/s"] for r in rounds], statistics.median(r[name]["cpu ms"] for r in rounds)
        spread = f"({min(rates):,.0f}-{max(rates):,.0f})"
        print(f"{name:20}{statistics.median(rates):>10,.0f} cells/s {spread:20}{cpu:8.3f} ms CPU a cell")
    print(f"peak memory {peak:,.0f} MiB")
    if given.json:
        report = {"cores": cores, "load": load, "side": given.side, "rounds": rounds, "peak MiB": peak}
        given.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
