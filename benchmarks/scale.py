"""Scale: seconds and memory of packing, training and scoring, from 2,000 to 200,000 cells.

    python -m benchmarks.scale [--cells 2000 20000 200000] [--folder WORK] [--json FILE] [--plot docs/scale.svg]

The cells are synthetic: a few hundred are drawn, and each gets a comment of its own in its PNG, so that all differ and
every one is decoded. Each stage of each size is a process of its own, one after the other, with the stages' own code.
Trainings are one epoch of small networks at 32 pixels (what is looked at is how they grow, not how long they take),
with a tenth of the cells for validation; packing and scoring are at 64 pixels.

Memory is what the process holds for itself (RssAnon, sampled), less what it held before the stage. Arrays are mapped
files, whose pages the system takes back when it needs them: they are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from infra.local.files import Workspace
from infra.scoring.model_file import MemberFile
from infra.settings.settings import Settings
from infra.store.folder import FolderStore
from infra.store.records import Records
from tasks.cells.packing import write_pack
from tasks.context import Context
from tasks.intake.synthetic_cells import SyntheticPlan, night_cells
from tasks.models import TrainingData, get_model

DRAWN = 500
SMALL: dict[str, dict[str, Any]] = {"fastai": {"architecture": "xresnet18"}, "keras": {"width": 8}}
STAGES, PREPARE = ("pack", "train keras", "train fastai", "score"), "prepare"


def make_cells(home: Path, count: int) -> None:
    """Put ``count`` different cells into the cache of a home folder, and their table beside it."""
    context = _context(home)
    drawn = []
    for cell in night_cells(1, SyntheticPlan(patients=30)):
        drawn.append((cell.png, cell.label))
        if len(drawn) == DRAWN:
            break
    rows = []
    for number in range(count):
        png, label = drawn[number % len(drawn)]
        rows.append((f"{label}/{number}.png", context.workspace.write_object(_commented(png, number)), label))
    pd.DataFrame(rows, columns=["key", "sha256", "label"]).to_parquet(home / "rows.parquet")


def _commented(png: bytes, number: int) -> bytes:
    """Return the same picture as other bytes: with a tEXt chunk before its end."""
    import zlib

    content = b"tEXtComment\0" + str(number).encode()
    chunk = (len(content) - 4).to_bytes(4, "big") + content + zlib.crc32(content).to_bytes(4, "big")
    return png[:-12] + chunk + png[-12:]


def _context(home: Path) -> Context:
    store = FolderStore(home / "store")
    return Context(Settings(home=home), store, Records(store), Workspace(home))


class Held:
    """The most that this process held for itself, in bytes, beyond what it held when this began."""

    def __init__(self) -> None:
        self.most = self.before = _anonymous()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self.over.wait(0.02):
            self.most = max(self.most, _anonymous())

    def __enter__(self) -> Held:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()


def _anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def stage_of(stage: str, home: Path) -> tuple[int, Callable[[], object]]:
    """Return how many cells a stage handles, and the stage, ready to be begun."""
    pack = home / "pack.npy"
    if stage == "pack":
        rows = pd.read_parquet(home / "rows.parquet")
        return len(rows), lambda: write_pack(_context(home), pack, rows, 64)
    if stage == "score":
        images, model = np.load(pack, mmap_mode="r"), MemberFile.open(home / "keras64" / "model.onnx")
        return len(images), lambda: model.score_logits(images)
    name, labels, small = stage.split()[1], labels_of(home), np.load(home / "pack32.npy", mmap_mode="r")
    valid = len(small) // 10
    data = TrainingData(small[valid:], labels[valid:], small[:valid], labels[:valid])
    return len(small), lambda: _train(name, data, home / name)


def _train(name: str, data: TrainingData, folder: Path) -> None:
    model = get_model(name)
    recipe = model.DefaultRecipe(epochs=1, min_steps=0, deadline_seconds=36_000, **SMALL[name])
    model.fit(data, recipe, seed=1, folder=folder, on_epoch=lambda _: None)


def labels_of(home: Path) -> npt.NDArray[np.float32]:
    """Return the labels of the cells that ``make_cells`` made, float32 [n], 1 for Parasitized."""
    infected = pd.read_parquet(home / "rows.parquet")["label"] == "Parasitized"
    return np.asarray(infected, dtype=np.float32)


def prepare(home: Path) -> None:
    """Make what training and scoring read: small cells, and a model file for those of 64 pixels."""
    pack, labels, few = np.load(home / "pack.npy", mmap_mode="r"), labels_of(home), slice(0, 400)
    _train("keras", TrainingData(pack[few], labels[few], pack[few], labels[few]), home / "keras64")
    small = np.lib.format.open_memmap(home / "pack32.npy", "w+", np.uint8, (len(pack), 32, 32, 3))
    for start in range(0, len(pack), 1000):
        small[start : start + 1000] = pack[start : start + 1000, ::2, ::2]


def run_stage(stage: str, home: Path) -> None:
    """Run one stage in this process and print what it took."""
    if stage == PREPARE:
        prepare(home)
        return
    count, work = stage_of(stage, home)
    if stage.startswith("train"):
        _train(stage.split()[1], _little(), home / "warm")  # loads the framework, which is not the stage's
    began, cpu = time.perf_counter(), time.process_time()
    with Held() as held:
        work()
    took = {"cells": count, "seconds": time.perf_counter() - began, "cpu seconds": time.process_time() - cpu}
    print(json.dumps({**took, "MiB": (held.most - held.before) / 2**20}))


def _little() -> TrainingData:
    images = np.random.default_rng(1).integers(0, 255, (96, 32, 32, 3), np.uint8)
    labels = np.resize(np.array([0, 1], np.float32), len(images))
    return TrainingData(images, labels, images, labels)


def measure(counts: list[int], folder: Path) -> Iterator[dict[str, Any]]:
    """Yield what each stage took for each number of cells."""
    for count in counts:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            home = Path(name)
            make_cells(home, count)
            for stage in ("pack", PREPARE, *STAGES[1:]):
                command = [sys.executable, "-m", __spec__.name, "--stage", stage, "--folder", str(home)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(f"{stage} of {count:,} cells failed:\n{done.stderr[-2000:]}")
                if stage != PREPARE:
                    yield {"stage": stage, **json.loads(done.stdout.splitlines()[-1])}


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Draw seconds and memory over the number of cells."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "scale"
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    seconds, memory = figure.subplots(1, 2)
    for stage, marker in zip(STAGES, "os^D", strict=True):
        rows = [row for row in results if row["stage"] == stage]
        cells = [row["cells"] for row in rows]
        seconds.plot(cells, [row["cpu seconds"] for row in rows], marker=marker, label=stage)
        memory.plot(cells, [max(1.0, row["MiB"]) for row in rows], marker=marker, label=stage)
    for axes, label in ((seconds, "CPU seconds"), (memory, "memory of its own, MiB")):
        axes.set(xscale="log", yscale="log", xlabel="cells", ylabel=label)
        axes.grid(alpha=0.3)
    memory.set_ylim(1, 10_000)
    seconds.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure, print the table, draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[2_000, 20_000, 200_000])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stage:
        run_stage(given.stage, given.folder)
        return
    results = []
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}")
    for row in measure(given.cells, given.folder):
        results.append(row)
        each = 1000 * row["cpu seconds"] / row["cells"]
        print(
            f"{row['stage']:13}{row['cells']:>9,} cells{row['seconds']:9.1f} s{row['cpu seconds']:9.1f} s CPU"
            f"{each:8.3f} ms a cell{row['MiB']:9.0f} MiB",
            flush=True,
        )
    if given.json:
        given.json.write_text(json.dumps(results, indent=2))
    if given.plot:
        plot(results, given.plot)


if __name__ == "__main__":
    main()
