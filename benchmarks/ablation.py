"""Ablation: what each part of a CNN's recipe brings, one change at a time, on patients that it has not seen.

    python -m benchmarks.ablation CELLS --folder WORK --model keras [--folds 0,1,2]
    python -m benchmarks.ablation CELLS --folder WORK --model keras --changes cutout,ema
    python -m benchmarks.ablation CELLS --folder WORK --model keras --table

The members are those of benchmarks/training.py. Each change of benchmarks/ablation_changes.py is set against the
recipe without it, in the same folds; ``seed`` changes nothing but
the seed, and shows what chance does. ``--recipe`` makes the comparison cheaper (a narrower network); what it tells of
the default recipe is then a hint.

Each training is a process of its own and is written to WORK as it ends; what is there is not trained again. Several of
these can share the work: each takes what no other has begun.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import training
from benchmarks.ablation_changes import CHANGES, Change
from benchmarks.training import Job
from benchmarks.training_table import aligned

UNCHANGED = "unchanged"
# The trainings of the recipe as it is.
OWN = (UNCHANGED, "seed", "seed-3")
ROWS = (("log_loss", 4), ("auc", 4), ("accuracy", 4), ("sensitivity", 4), ("cpu_seconds", 0))


def job_of(name: str, model: str, fold: int, recipe: dict[str, Any]) -> Job:
    """Return the training that a change asks for."""
    change = CHANGES.get(name, Change(""))
    return Job(model, change.seed, fold, recipe | change.recipe)


def results_of(folder: Path, name: str, model: str, folds: Sequence[int], recipe: dict[str, Any]) -> dict[int, Any]:
    """Return the results that are there, by fold."""
    paths = {fold: job_of(name, model, fold, recipe).path(folder / name) for fold in folds}
    return {fold: json.loads(path.read_text()) for fold, path in paths.items() if path.exists()}


def table(folder: Path, names: Sequence[str], model: str, folds: Sequence[int], recipe: dict[str, Any]) -> str:
    """Return what the recipe comes to, and what each change adds to it: mean and range over the folds that have both.

    The recipe's own figures are the mean of its seeds in that fold: one unlucky draw would make every change look good.
    """
    found = {name: results_of(folder, name, model, folds, recipe) for name in dict.fromkeys([*OWN, *names])}
    lines = [["", "folds", *(key for key, _ in ROWS)]]
    for name in names:
        has_both = sorted(found[name].keys() & found[UNCHANGED].keys())
        if not has_both:
            continue
        row = [CHANGES[name].says if name in CHANGES else name, ",".join(map(str, has_both))]
        for key, decimals in ROWS:
            values = np.array([_figure([found[name][fold]], key) for fold in has_both])
            seeds = [UNCHANGED] if name in OWN else OWN
            own = np.array([_figure([found[s][fold] for s in seeds if fold in found[s]], key) for fold in has_both])
            if name == UNCHANGED:
                row.append(f"{values.mean():.{decimals}f}")
                continue
            more = values - own
            row.append(f"{more.mean():+.{decimals}f} ({more.min():+.{decimals}f} to {more.max():+.{decimals}f})")
        lines.append(row)
    return "\n".join(aligned(lines))


def _figure(results: Sequence[dict[str, Any]], key: str) -> float:
    return float(np.mean([(result | result["metrics"])[key] for result in results]))


def main() -> None:
    """Train what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", type=Path)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--model", choices=("fastai", "keras"), default="keras")
    parser.add_argument("--folds", default="0,1,2", help="which of five")
    parser.add_argument("--changes", help=f"of {', '.join(CHANGES)}; default: all of the model's")
    parser.add_argument("--recipe", type=json.loads, default={}, help='of all trainings, as in {"dropout": 0.3}')
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        name = given.job.pop("name")
        if patch := CHANGES.get(name, Change("")).patch:
            patch()
        training.run(Job(**given.job), given.folder / name)
        return
    folds = [int(fold) for fold in given.folds.split(",")]
    own = [name for name, change in CHANGES.items() if given.model in change.models]
    names = given.changes.split(",") if given.changes else own
    if unknown := set(names) - set(own):
        parser.error(f"unknown changes of {given.model}: {', '.join(sorted(unknown))}; there are {', '.join(own)}")
    names = [UNCHANGED, *names]
    if not given.table:
        given.folder.mkdir(parents=True, exist_ok=True)
        training.prepare(given.cells, given.folder)
        for fold in folds:
            for name in names:
                _train(given.cells, given.folder, name, job_of(name, given.model, fold, given.recipe))
    print(table(given.folder, names, given.model, folds, given.recipe))


def _train(cells: Path, folder: Path, name: str, job: Job) -> None:
    """Train in a process of its own what no other has begun."""
    (folder / name / "results").mkdir(parents=True, exist_ok=True)
    arrays = folder / name / "cells.npz"
    if not arrays.exists():
        arrays.symlink_to(folder.resolve() / "cells.npz")
    result = job.path(folder / name)
    if result.exists():
        return
    claim = result.with_suffix(".begun")
    try:
        claim.touch(exist_ok=False)
    except FileExistsError:
        return
    print(f"{name}: {job}", file=sys.stderr, flush=True)
    arguments = ["--folder", str(folder), "--model", job.model, "--job", json.dumps(asdict(job) | {"name": name})]
    ended = subprocess.run([sys.executable, "-m", __spec__.name, cells, *arguments], check=False)
    if ended.returncode:
        claim.unlink()
        sys.exit(f"{name}: the training ended with status {ended.returncode}")


if __name__ == "__main__":
    main()
