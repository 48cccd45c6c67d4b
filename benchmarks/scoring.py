"""Scoring: the model file over onnxruntime against the framework that trained it, on this machine's CPU.

    python -m benchmarks.scoring WORK [--cells 1024] [--rounds 5] [--json FILE]

WORK is the folder of ``benchmarks.training``, with at least one finished training of each CNN. Both score the same
cells in the same process, in turns; loading and the first call are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from infra.scoring.model_file import MemberFile
from tasks.models import get_model, model_names


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def compare(name: str, folder: Path, count: int, rounds: int) -> dict[str, Any]:
    """Return cells a second of both, a figure a round."""
    trained = next((folder / "work").glob(f"{name}-*"))
    weights = next(path for path in trained.iterdir() if path.name.startswith("weights."))
    with np.load(folder / "cells.npz") as file:
        images = np.resize(file["x"], (count, *file["x"].shape[1:]))
    model, opened = get_model(name), MemberFile.open(trained / "model.onnx")
    recipe = model.DefaultRecipe()  # type: ignore[call-arg]
    ways = {
        "onnxruntime": lambda: opened.score_logits(images),
        "framework": lambda: model.predict_native(weights, recipe, images),
    }
    # The framework opens its weights anew at each call: what that takes is measured on no cells at all.
    opening = min(_seconds(lambda: model.predict_native(weights, recipe, images[:1])) for _ in range(3))
    opened.score_logits(images[:64])
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        found["onnxruntime"].append(count / _seconds(ways["onnxruntime"]))
        found["framework"].append(count / (_seconds(ways["framework"]) - opening))
    return {"model": name, "cells": count, **found}


def main() -> None:
    """Compare each CNN in a process of its own, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cells", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.model:
        sys.stdout.write(json.dumps(compare(given.model, given.folder, given.cells, given.rounds)))
        return
    results = []
    for name in model_names():
        command = [sys.executable, "-m", __spec__.name, given.folder, "--model", name, "--cells", str(given.cells)]
        done = subprocess.run([*command, "--rounds", str(given.rounds)], check=True, capture_output=True, text=True)
        results.append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}; cells/s, medians (lowest-highest)")
    for result in results:
        ours, theirs = result["onnxruntime"], result["framework"]
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        for way, rates in (("onnxruntime", ours), ("framework", theirs)):
            print(f"{result['model']:8}{way:14}{statistics.median(rates):8.0f} ({min(rates):.0f}-{max(rates):.0f})")
        print(f"{result['model']:8}{'ratio':14}{statistics.median(ratios):8.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
    if given.json:
        given.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
