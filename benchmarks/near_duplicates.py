"""Near duplicates: a night of which 1% is new, with what the nights before found and without.

    python -m benchmarks.near_duplicates [--images 27558,100000] [--new 0.01] [--repeat 3]

Fingerprints are made up: the cost depends on their number alone. Each row is one run: both ways in turn, the ratio of
their medians and its range. That both find the same pairs is checked as well.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from infra.local.files import Workspace
from infra.settings.settings import Settings
from infra.store.memory import MemoryStore
from infra.store.records import Records
from tasks.cells.near_pairs import near_pairs, pairs_path
from tasks.context import Context
from validation.images.duplicates import compare_all


def made_up(count: int) -> pd.DataFrame:
    """Return images with fingerprints (192 signed bytes in hex), one in a hundred a copy of another."""
    random = np.random.default_rng(1)
    waves = random.normal(0, 40, (count, 192)).clip(-127, 127).astype(np.int8)
    copies = np.arange(99, count, 100)
    waves[copies] = waves[copies - 50]
    pixels = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(count)]
    return pd.DataFrame({"pixels": pixels, "fingerprint": [row.tobytes().hex() for row in waves]})


def timed(work: Callable[[], list[tuple[int, int]]]) -> tuple[float, list[tuple[int, int]]]:
    """Return the seconds of one call, and what it returned."""
    began = time.perf_counter()
    pairs = work()
    return time.perf_counter() - began, pairs


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="27558,100000")
    parser.add_argument("--new", type=float, default=0.01)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    print("| images | new | all with all, s | new with all, s | ratio (range) |\n|---|---|---|---|---|")
    for count in map(int, options.images.split(",")):
        images, new = made_up(count), int(count * options.new)
        with tempfile.TemporaryDirectory() as home:
            store = MemoryStore()
            context = Context(Settings(home=Path(home)), store, Records(store), Workspace(Path(home)))
            near_pairs(context, images[:-new])
            kept = pairs_path(context).read_bytes()
            whole, part = [], []
            for _ in range(options.repeat):
                seconds, pairs = timed(lambda images=images: compare_all(images))  # type: ignore[misc]
                whole.append(seconds)
                pairs_path(context).write_bytes(kept)
                seconds, found = timed(lambda images=images, context=context: near_pairs(context, images))  # type: ignore[misc]
                part.append(seconds)
                assert found == pairs
        ratios = [one / other for one, other in zip(whole, part, strict=True)]
        medians = statistics.median(whole), statistics.median(part)
        print(
            f"| {count:,} | {new:,} | {medians[0]:.1f} | {medians[1]:.2f} "
            f"| {medians[0] / medians[1]:.0f} ({min(ratios):.0f}-{max(ratios):.0f}) |"
        )


if __name__ == "__main__":
    main()
