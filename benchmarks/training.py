"""Training: how good a member of each CNN is on patients it has not seen, in how many seconds.

    python -m benchmarks.training CELLS --folder WORK [--models fastai,keras] [--folds 0,1,2,3,4] [--seeds 1]
    python -m benchmarks.training CELLS --folder WORK --references   also the notebook's two recipes, on our patients
    python -m benchmarks.training CELLS --folder WORK --models keras --recipe '{"smoothing": 0}'
    python -m benchmarks.training CELLS --folder WORK --table        only print what was measured so far

CELLS holds <Class>/<name>.png. They are pulled, validated, divided into folds and packed by the stages of a night, with
default settings. A member of each fold is trained as in a night: on the patients outside its fold, less its tuning
patients, on whom its epoch, temperature and threshold are chosen; it is scored on the patients of its fold. More
``--seeds`` train the member of fold 0 again.

``--references`` trains the notebook's recipes (benchmarks/references.py) on the patients of fold 0's member; theirs is
the threshold of a half. How long each took is set against when ours was as good on the tuning patients.
XResNet34 at 224 pixels takes more than an hour: ``--reference-share 0.15`` trains it on so many of the cells, one epoch
frozen and one not, and extrapolates its seconds.

Each training is a process of its own, one after the other, and is written to WORK/results as it ends: the benchmark
can be stopped at any time and resumes. A result belongs to its recipe.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from benchmarks import references
from benchmarks.roofline import peak_flops, training_flops
from benchmarks.training_table import figures, judged, table
from infra.local.files import Workspace, write_atomic
from infra.scoring.model_file import MemberFile
from infra.settings.settings import Settings
from infra.store.folder import FolderStore
from infra.store.records import Records
from tasks.cells.packing import load_pack
from tasks.context import Context
from tasks.models import Recipe, TrainingData, get_model, model_names
from tasks.pack import pack
from tasks.pull import pull
from tasks.split import split
from tasks.validate import validate
from validation.digest import digest
from validation.patients import FOLDS, is_tuning
from validation.records import POSITIVE
from validation.statistics.calibration import calibrated_loss
from validation.statistics.metrics import Scored

Cells = tuple[Any, Any, Any]


@dataclass(frozen=True)
class Job:
    """One training: which CNN, with which seed, and the fold that it does not see.

    ``changes``: what its recipe has other than the default.
    """

    model: str
    seed: int
    fold: int
    changes: dict[str, Any]

    @property
    def recipe(self) -> Recipe:
        """How it is trained."""
        return get_model(self.model).DefaultRecipe(**self.changes)

    def path(self, folder: Path) -> Path:
        """The file of its result; named by the recipe too."""
        recipe = references.RECIPES.get(self.model) or self.recipe.model_dump(mode="json")
        return folder / "results" / f"{self.model}-{digest(recipe)[:8]}-fold{self.fold}-seed{self.seed}.json"


def prepare(cells: Path, folder: Path) -> None:
    """Run the stages of a night up to the pack, and keep images, labels, patients, folds and keys."""
    if (folder / "cells.npz").exists():
        return
    store = FolderStore(folder / "store")
    for path in sorted(cells.glob("*/*.png")):
        store.put(f"labeled/{path.parent.name}/{path.name}", path.read_bytes())
    context = Context(Settings(home=folder / "home"), store, Records(store), Workspace(folder / "home"))
    divided = split(context, validate(context, pull(context), None))
    images = load_pack(context, pack(context, divided))
    rows = context.records.load_table(divided.table)
    arrays: dict[str, Any] = {
        "x": images,
        "y": (rows["label"] == POSITIVE).to_numpy(bool),
        "f": rows["fold"].to_numpy(),
    }
    arrays |= {"p": np.array(rows["origin"].tolist()), "k": np.array(rows["key"].tolist())}
    temporary = folder / ".cells.npz"
    np.savez(temporary, **arrays)
    temporary.replace(folder / "cells.npz")


def divide(arrays: dict[str, Any], fold: int, what: str = "xyp") -> list[Cells]:
    """Return the training, tuning and judging cells of a fold's member: images, labels, patients of each."""
    judged = arrays["f"] == fold
    tuning = np.array([is_tuning(patient, fold) for patient in arrays["p"]], bool)
    return [tuple(arrays[name][mask] for name in what) for mask in (~judged & ~tuning, tuning, judged)]


def run_reference(job: Job, folder: Path, share: float) -> None:
    """Train one of the notebook's recipes, score the fold's patients, and write the result."""
    with np.load(folder / "cells.npz") as file:
        arrays = dict(file)
    (train, _), (valid, _), (test, patients) = (
        (references.Side(tuple(folder / "store" / key for key in keys), labels), patients)
        for keys, labels, patients in divide(arrays, job.fold, "kyp")
    )
    cpu = _cpu_seconds()
    ran = references.run(job.model, train, valid, test, seed=job.seed, share=share)
    codes, _ = pd.factorize(patients, sort=True)
    found: dict[str, Any] = {"metrics": {}, "calibration_error": None, "threshold": 0.5}
    valid_accuracy = valid_loss = None
    if ran.valid is not None and ran.test is not None:
        found = figures(Scored(test.labels, ran.test, codes.astype(np.int64), 0.5))
        valid_accuracy = float(np.mean((ran.valid > 0.5) == valid.labels))
        logits = logit(np.clip(ran.valid, 1e-7, 1 - 1e-7))
        valid_loss, _ = calibrated_loss(logits, valid.labels)
    result = {
        **asdict(job),
        "recipe": references.RECIPES[job.model],
        "epochs": ran.epochs,
        "extrapolated": ran.extrapolated,
        "share": share if ran.extrapolated else 1,
        "valid_accuracy": valid_accuracy,
        "valid_loss": valid_loss,
        "seconds": ran.seconds,
        "cpu_seconds": None if ran.extrapolated else _cpu_seconds() - cpu,
        "images_per_second": len(train.files) * ran.epochs / ran.seconds,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "cells": [len(train.files), len(valid.files), len(test.files)],
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
    }
    write_atomic(job.path(folder), json.dumps(result | found).encode())


def _cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def run(job: Job, folder: Path) -> None:
    """Train a member, score the patients of its fold, and write the result."""
    with np.load(folder / "cells.npz") as file:
        (train_x, train_y, _), (valid_x, valid_y, valid_p), (test_x, test_y, test_p) = divide(dict(file), job.fold)
    model, recipe = get_model(job.model), job.recipe
    patients = pd.factorize(valid_p)[0].astype(np.int64)
    data = TrainingData(train_x, train_y.astype(np.float32), valid_x, valid_y.astype(np.float32), patients)
    began, cpu = time.perf_counter(), _cpu_seconds()
    fit = model.fit(
        data,
        recipe,
        seed=job.seed,
        folder=folder / "work" / job.path(folder).stem,
        on_epoch=lambda epoch: print(epoch.model_dump_json(), file=sys.stderr, flush=True),
    )
    seconds, cpu = time.perf_counter() - began, _cpu_seconds() - cpu
    file_ = MemberFile.open(fit.onnx)
    chosen_on = expit(file_.score_logits(valid_x).astype(np.float64))
    began_scoring = time.perf_counter()
    probabilities = expit(file_.score_logits(test_x).astype(np.float64))
    score_seconds = time.perf_counter() - began_scoring
    epochs, epoch_seconds = len(fit.history), [epoch.seconds for epoch in fit.history]
    flops = training_flops(fit.onnx, recipe, epochs, len(train_x), len(valid_x)) / sum(epoch_seconds)
    result = {
        **asdict(job),
        "recipe": recipe.model_dump(mode="json"),
        "temperature": fit.temperature,
        "epochs": epochs,
        "best_epoch": fit.best_epoch,
        "stopped": fit.stopped,
        "valid_losses": [epoch.valid_loss for epoch in fit.history],
        "valid_accuracies": [epoch.valid_accuracy for epoch in fit.history],
        "epoch_seconds": epoch_seconds,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "images_per_second": len(train_x) * epochs / sum(epoch_seconds),
        "gflops": flops / 1e9,
        "roofline_share": flops / peak_flops(job.model, fit.device),
        "score_ms": 1000 * score_seconds / len(test_x),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "cells": [len(train_x), len(valid_x), len(test_x)],
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "device": fit.device,
        "versions": fit.versions,
        "prevalence": float(train_y.mean()),
        "chosen_on": {"patient": valid_p.tolist(), "label": valid_y.tolist(), "probability": chosen_on.tolist()},
        "predictions": {"patient": test_p.tolist(), "label": test_y.tolist(), "probability": probabilities.tolist()},
    }
    write_atomic(job.path(folder), json.dumps(result | judged(result)).encode())


def judge_again(folder: Path, jobs: Sequence[Job]) -> None:
    """Put today's threshold and figures into the results that are there; nothing is trained."""
    for job in jobs:
        if (path := job.path(folder)).exists() and "chosen_on" in (result := json.loads(path.read_text())):
            write_atomic(path, json.dumps(result | judged(result)).encode())


def measured(folder: Path, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Return the results that are there."""
    return [json.loads(path.read_text()) for job in jobs if (path := job.path(folder)).exists()]


def main() -> None:
    """Train what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", type=Path)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--models", default=",".join(model_names()))
    parser.add_argument("--seeds", type=int, default=1, help="trainings of the member of fold 0")
    parser.add_argument("--folds", default=",".join(map(str, range(FOLDS))))
    parser.add_argument("--recipe", type=json.loads, default={}, help='recipe settings, as in {"smoothing": 0}')
    parser.add_argument("--references", action="store_true", help="also the notebook's two recipes")
    parser.add_argument("--reference-share", type=float, default=1.0, help="of the cells, for fastai's; 1: whole")
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("--judge-again", action="store_true", help="choose the thresholds of what is trained again")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.job:
        job = Job(**given.job)
        if job.model in references.RECIPES:
            run_reference(job, given.folder, given.reference_share)
        else:
            run(job, given.folder)
        return
    names = given.models.split(",")
    jobs = [Job(name, 1, int(fold), given.recipe) for fold in given.folds.split(",") for name in names]
    jobs += [Job(name, seed, 0, given.recipe) for seed in range(2, given.seeds + 1) for name in names]
    if given.references:
        jobs += [Job(name, 1, 0, {}) for name in references.RECIPES]
    if given.judge_again:
        judge_again(given.folder, jobs)
    if not given.table:
        prepare(given.cells, given.folder)
        for number, job in enumerate(jobs, 1):
            if not job.path(given.folder).exists():
                print(f"{number} of {len(jobs)}: {job}", file=sys.stderr, flush=True)
                arguments = ["--folder", given.folder, "--job", json.dumps(asdict(job))]
                arguments += ["--reference-share", str(given.reference_share)]
                subprocess.run([sys.executable, "-m", __spec__.name, given.cells, *arguments], check=True)
    print(table(measured(given.folder, jobs)))


if __name__ == "__main__":
    main()
