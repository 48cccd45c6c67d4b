"""Nested: how good the deployed file is on patients outside all of it, beside single networks and by its own account.

    python -m benchmarks.nested CELLS --folder WORK [--parts 0,1] [--models keras,fastai] [--single]
    python -m benchmarks.nested CELLS --folder WORK --table      only print what was measured so far

The patients are divided into five parts by a hash that has nothing to do with their folds. The patients of a part are
left out; a candidate is made of the rest as in a night: five members, combined into one file, its threshold frozen on
their tuning patients. Then it is scored on the part's patients, who took no part in anything, by:

- file: ``probability``, as it is deployed;
- member: each member alone with one view, and with four mirrored views; the mean of the five;
- single: with ``--single``, one network of the recipes of before there were members, on the same patients less its
  tuning patients, with four views;
- and, as a night judges it, the rest's patients out of fold: what the file promises of itself.

Each training is a process of its own and is kept in WORK: the benchmark can be stopped at any time and resumes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import expit

from benchmarks.training import prepare
from benchmarks.training_table import aligned, figures
from infra.local.files import write_atomic
from infra.scoring.model_file import MemberFile, ModelFile
from tasks.models import TrainingData, get_model
from tasks.models.onnx_file import combine
from validation.patients import FOLDS, is_tuning
from validation.statistics.metrics import Scored
from validation.statistics.threshold import choose_threshold

PARTS = 5
# What a single network had before there were members; the fold that no patient has leaves nobody out.
SINGLE = {"keras": {"epochs": 24, "views": 4}, "fastai": {"epochs": 8, "views": 4}}
NOBODY = FOLDS
ROWS = ("accuracy", "auc", "sensitivity", "specificity", "log_loss", "calibration_error")

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Job:
    """One training: the part that is left out, the CNN, and the fold that this member does not see."""

    part: int
    model: str
    fold: int

    def folder(self, work: Path) -> Path:
        """Where its files are."""
        return work / "nested" / f"part{self.part}-{self.model}-fold{self.fold}"


def part_of(patient: str) -> int:
    """Return the part, 0 .. PARTS-1, of a patient."""
    return int(hashlib.sha256(f"outer/{patient}".encode()).hexdigest()[:8], 16) % PARTS


def masks(arrays: Arrays, part: int, fold: int) -> tuple[npt.NDArray[np.bool_], ...]:
    """Return the training, tuning, judging and outer cells of a member, bool [n] each."""
    outer = np.array([part_of(patient) == part for patient in arrays["p"]])
    tuning = np.array([is_tuning(patient, fold) for patient in arrays["p"]], bool) & ~outer
    judged = (arrays["f"] == fold) & ~outer
    return ~outer & ~tuning & ~judged, tuning, judged, outer


def train(job: Job, work: Path) -> None:
    """Train a member, or the single network."""
    with np.load(work / "cells.npz") as file:
        arrays = dict(file)
    fitted, tuning, *_ = masks(arrays, job.part, job.fold)
    model = get_model(job.model)
    recipe = model.DefaultRecipe(**(SINGLE[job.model] if job.fold == NOBODY else {}))
    patients = pd.factorize(arrays["p"][tuning])[0].astype(np.int64)
    images, labels = arrays["x"], arrays["y"].astype(np.float32)
    data = TrainingData(images[fitted], labels[fitted], images[tuning], labels[tuning], patients)
    began, folder = time.perf_counter(), job.folder(work)
    fit = model.fit(data, recipe, seed=1 + job.fold, folder=folder, on_epoch=lambda _: None)
    result = {
        **asdict(job),
        "seconds": time.perf_counter() - began,
        "epochs": len(fit.history),
        "best_epoch": fit.best_epoch,
        "cells": [int(fitted.sum()), int(tuning.sum())],
        "recipe": recipe.model_dump(mode="json"),
        "versions": fit.versions,
    }
    write_atomic(folder / "result.json", json.dumps(result).encode())


def scored(arrays: Arrays, cells: npt.NDArray[np.bool_], probabilities: Any, threshold: float) -> Scored:
    """Return probabilities, float [cells], beside the truth."""
    codes = pd.factorize(arrays["p"][cells], sort=True)[0].astype(np.int64)
    return Scored(arrays["y"][cells], np.asarray(probabilities, np.float64), codes, threshold)


def tuning_cells(arrays: Arrays, parts: Sequence[tuple[npt.NDArray[np.bool_], Any]], threshold: float) -> Scored:
    """Return tuning cells one after another, each beside its probability by a member that it tuned."""
    codes = pd.factorize(np.concatenate([arrays["p"][mask] for mask, _ in parts]), sort=True)[0].astype(np.int64)
    labels = np.concatenate([arrays["y"][mask] for mask, _ in parts])
    return Scored(labels, np.concatenate([found for _, found in parts]).astype(np.float64), codes, threshold)


def threshold_of(arrays: Arrays, parts: Sequence[tuple[npt.NDArray[np.bool_], Any]], prevalence: float) -> float:
    """Return the threshold frozen on tuning cells, each scored by the members that it tuned."""
    tuned = tuning_cells(arrays, parts, 0.5)
    return choose_threshold(tuned.labels, tuned.probabilities, tuned.patients, prevalence=prevalence)


def four_views(file: MemberFile, images: Any) -> Any:
    """Return the probability, float [n], by the mean logit over a cell and its mirror images."""
    mirrored = [images, images[:, :, ::-1]]
    views = [*mirrored, *(view[:, ::-1] for view in mirrored)]
    logits = [file.score_logits(np.ascontiguousarray(view)) for view in views]
    return expit(np.mean(logits, axis=0, dtype=np.float64))


def judge(part: int, model: str, work: Path) -> dict[str, Any]:
    """Combine the members of a part's candidate, and score its outer patients in every way."""
    with np.load(work / "cells.npz") as file:
        arrays: Arrays = dict(file)
    images = arrays["x"]
    outer = masks(arrays, part, 0)[3]
    inside_prevalence = float(arrays["y"][~outer].mean())
    files = [(fold, (Job(part, model, fold).folder(work) / "model.onnx").read_bytes()) for fold in range(FOLDS)]
    members = [MemberFile(data) for _, data in files]
    out_of_fold, tuned = np.zeros(len(images)), []
    rows: dict[str, Any] = {}
    alone: dict[str, list[dict[str, Any]]] = {"member, one view": [], "member, four views": []}
    for fold, member in enumerate(members):
        _, tuning, judged, _ = masks(arrays, part, fold)
        tuned.append((tuning, expit(member.score_logits(images[tuning]).astype(np.float64))))
        out_of_fold[judged] = expit(member.score_logits(images[judged]).astype(np.float64))
        own = threshold_of(arrays, tuned[-1:], inside_prevalence)
        one_view = expit(member.score_logits(images[outer]).astype(np.float64))
        alone["member, one view"].append(figures(scored(arrays, outer, one_view, own)))
        alone["member, four views"].append(figures(scored(arrays, outer, four_views(member, images[outer]), own)))
    threshold = threshold_of(arrays, tuned, inside_prevalence)
    combined = combine(files)
    deployed = ModelFile(combined)
    began = time.perf_counter()
    probabilities = deployed.score(images[outer])
    milliseconds = 1000 * (time.perf_counter() - began) / outer.sum()
    began = time.perf_counter()
    four_views(members[0], images[outer])
    milliseconds_single = 1000 * (time.perf_counter() - began) / outer.sum()
    rows["file"] = figures(scored(arrays, outer, probabilities, threshold))
    rows |= {name: _mean(each) for name, each in alone.items()}
    rows["its members, out of fold"] = figures(scored(arrays, ~outer, out_of_fold[~outer], threshold))
    single = Job(part, model, NOBODY).folder(work)
    if (single / "result.json").exists():
        file_ = MemberFile.open(single / "model.onnx")
        tuning = masks(arrays, part, NOBODY)[1]
        tuned_by = [(tuning, expit(file_.score_logits(images[tuning]).astype(np.float64)))]
        own = threshold_of(arrays, tuned_by, inside_prevalence)
        by_single = expit(file_.score_logits(images[outer]).astype(np.float64))
        rows["single network of before"] = figures(scored(arrays, outer, by_single, own))
    on_tuning = figures(tuning_cells(arrays, tuned, threshold))["metrics"]
    return {
        "part": part,
        "model": model,
        "patients": [len(set(arrays["p"][~outer])), len(set(arrays["p"][outer]))],
        "cells": [int((~outer).sum()), int(outer.sum())],
        "tuning_log_loss": on_tuning["log_loss"],
        "tuning_balanced_accuracy": on_tuning["balanced_accuracy"],
        "rows": rows,
        "milliseconds": {"file": milliseconds, "member, four views": milliseconds_single},
        "megabytes": {"file": len(combined) / 1e6, "member": len(files[0][1]) / 1e6},
        "outer": {
            "patient": arrays["p"][outer].tolist(),
            "label": arrays["y"][outer].tolist(),
            "probability": probabilities.astype(float).tolist(),
            "threshold": threshold,
        },
    }


def _mean(each: Sequence[dict[str, Any]]) -> dict[str, Any]:
    metrics = {name: float(np.mean([one["metrics"][name] for one in each])) for name in each[0]["metrics"]}
    return {"metrics": metrics, "calibration_error": float(np.mean([one["calibration_error"] for one in each]))}


def table(found: Sequence[dict[str, Any]]) -> str:
    """Return what was measured: a block for each CNN, the mean over its parts."""
    blocks = []
    for model in sorted({one["model"] for one in found}):
        own = [one for one in found if one["model"] == model]
        lines = [[f"{model}, parts {', '.join(str(one['part']) for one in own)}", *ROWS]]
        for name in own[0]["rows"]:
            having = [one["rows"][name] for one in own if name in one["rows"]]
            values = [np.mean([(row | row["metrics"])[key] for row in having]) for key in ROWS]
            lines.append([name, *(f"{value:.4f}" for value in values)])
        blocks += [*aligned(lines), ""]
        for one in own:
            blocks.append(
                f"part {one['part']}: {one['patients']} patients in and out, {one['cells']} cells;"
                f" tuning patients: balanced accuracy {one['tuning_balanced_accuracy']:.4f},"
                f" log loss {one['tuning_log_loss']:.4f};"
                f" outside: accuracy {one['rows']['file']['metrics']['accuracy']:.4f};"
                f" ms a cell {one['milliseconds']}; MB {one['megabytes']}"
            )
        blocks.append("")
    return "\n".join(blocks)


def main() -> None:
    """Train what is missing, judge, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", type=Path)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--models", default="keras,fastai")
    parser.add_argument("--parts", default="0,1", help="which of five are left out, one after another")
    parser.add_argument("--single", action="store_true", help="also the single networks of before")
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        train(Job(**given.job), given.folder)
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    prepare(given.cells, given.folder)
    found = []
    for part in map(int, given.parts.split(",")):
        for model in given.models.split(","):
            jobs = [Job(part, model, fold) for fold in range(FOLDS + given.single)]
            for job in jobs:
                if not given.table and not (job.folder(given.folder) / "result.json").exists():
                    print(job, file=sys.stderr, flush=True)
                    arguments = ["--folder", given.folder, "--job", json.dumps(asdict(job))]
                    subprocess.run([sys.executable, "-m", __spec__.name, given.cells, *arguments], check=True)
            if all((job.folder(given.folder) / "result.json").exists() for job in jobs[:FOLDS]):
                found.append(judge(part, model, given.folder))
                write_atomic(given.folder / f"part{part}-{model}.json", json.dumps(found[-1]).encode())
                print(table(found), flush=True)


if __name__ == "__main__":
    main()
