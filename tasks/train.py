"""Train: one CNN, in its own process, to one model file with a frozen threshold."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.processes.gpus import devices_of_a_training
from infra.scoring.model_file import ModelFile
from infra.store.keys import candidate_key
from tasks.cells.side_data import SideData, load_side
from tasks.context import Context
from tasks.stage import stage
from tasks.training.specs import find_candidate
from validation.digest import digest, sha256
from validation.errors import ModelFileInvalid, TrainingFailed
from validation.records import Candidate, EpochRecord, Pack, SideName, Split, TrainSpec
from validation.statistics.metrics import summarise
from validation.statistics.threshold import choose_threshold

log = logging.getLogger(__name__)

Sides = Mapping[SideName, SideData]

SIDES: tuple[SideName, ...] = ("train", "validation")
# Fields of the child's result that a candidate has under the same name.
COPIED = ("best_epoch", "stopped", "versions", "device", "seconds", "peak_memory_mb")
# Loading the framework and writing the files come on top of the fit's own deadline.
GRACE_SECONDS = 300.0


def train(context: Context, spec: TrainSpec, split: Split, pack: Pack) -> Candidate:
    """Return the candidate of ``spec``, trained unless it is stored already.

    Raises:
        TrainingFailed: when the training ends without a model, for any reason.
    """
    id_, stored = find_candidate(context, spec)
    if stored is not None:
        return stored
    folder = context.workspace.scratch(f"train-{id_}")
    sides = {side: load_side(context, split, pack, side) for side in SIDES}
    for name, side in sides.items():
        if len(set(side.labels.tolist())) < 2:
            raise TrainingFailed(
                f"the {name} side of the split has {side.patients_count} patients and not cells of both classes",
                "more patients are needed",
            )
    if (result := _finished(folder)) is None:
        _write_request(context, folder, spec, pack, sides)
        _run_child(folder, spec)
        result = _finished(folder)
    if result is None:
        raise TrainingFailed(f"the training of {spec.model} left no model", f"see {folder / 'stderr.log'}")
    candidate = _keep(context, id_, spec, folder, result, sides)
    shutil.rmtree(folder)
    return candidate


def _write_request(context: Context, folder: Path, spec: TrainSpec, pack: Pack, sides: Sides) -> None:
    labels = np.zeros(pack.cells, np.float32)
    for side in sides.values():
        labels[side.start : side.stop] = side.labels
    for name, array in (("labels", labels), ("patients", sides["validation"].codes)):
        buffer = io.BytesIO()  # NumPy's own writing hides a full disk
        np.save(buffer, array)
        (folder / f"{name}.npy").write_bytes(buffer.getvalue())
    request: dict[str, Any] = {
        "model": spec.model,
        "recipe": spec.recipe,
        "seed": spec.seed,
        "pack": str(context.workspace.pack_path(pack.id)),
        "devices": devices_of_a_training(context.settings.training.devices),
        "start": _fetch_start(context, folder, spec.start) if spec.start else None,
        **{name: [side.start, side.stop] for name, side in sides.items()},
    }
    (folder / "request.json").write_text(json.dumps(request))


def _fetch_start(context: Context, folder: Path, candidate: str) -> str:
    """Copy the weights of an earlier candidate into the folder and return the file's name."""
    earlier = context.records.load(Candidate, candidate)
    weights = context.store.get(earlier.weights_key)
    if sha256(weights) != earlier.weights_sha256:
        raise TrainingFailed(
            f"the weights of candidate {candidate}, to start from, are not those that were recorded",
            "run the night again with RETRAIN_TRAINING__WARM=false",
        )
    name = f"start{Path(earlier.weights_key).suffix}"
    (folder / name).write_bytes(weights)
    return name


def _finished(folder: Path) -> dict[str, Any] | None:
    """Return the result of a finished training, also when its parent was killed before storing it."""
    try:
        result: dict[str, Any] = json.loads((folder / "result.json").read_text())
        whole = all(sha256((folder / name).read_bytes()) == expected for name, expected in result["sha256"].items())
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return result if whole else None


def _run_child(folder: Path, spec: TrainSpec) -> None:
    limit = float(spec.recipe["deadline_seconds"]) + GRACE_SECONDS
    command = [sys.executable, "-m", "tasks.training.child", str(os.getpid()), str(folder)]
    with (
        (folder / "stderr.log").open("wb") as errors,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        ) as child,
    ):
        # The fit checks its own deadline between batches; this is for one that hangs.
        started, timer = time.monotonic(), threading.Timer(limit, child.kill)
        timer.start()
        try:
            problem = _relay(child.stdout or (), spec)
            code = child.wait()
        finally:
            timer.cancel()
            child.kill()
        if code and time.monotonic() - started >= limit:
            problem = f"it did not end within {limit:g} s and was killed by signal {-code}"
    if code:
        raise TrainingFailed(
            f"the training of {spec.model} ended without a model: {problem or _cause(folder, code)}",
            f"its output is in {folder / 'stderr.log'}; the night can be run again",
        )


def _relay(lines: Iterable[bytes], spec: TrainSpec) -> str:
    """Log what a training reports, epoch by epoch; return the error that it reports, if any."""
    problem = ""
    for line in lines:
        try:
            message = json.loads(line)
        except ValueError:
            continue  # a line torn by a kill
        if "error" in message:
            problem = message["error"]
        elif "warning" in message:
            log.warning("%s: %s", spec.model, message["warning"])
        else:
            epoch = EpochRecord.model_validate(message["epoch"])
            accuracy = "" if epoch.valid_accuracy is None else f", accuracy {epoch.valid_accuracy:.4f}"
            log.info(
                "%s epoch %d: training loss %.4f, validation loss %.4f%s (%.0f s)",
                *(spec.model, epoch.epoch, epoch.train_loss, epoch.valid_loss, accuracy, epoch.seconds),
            )
    return problem


def _cause(folder: Path, code: int) -> str:
    if code < 0:
        return f"killed by signal {-code}" + (" (out of memory, or out of time?)" if code == -9 else "")
    lines = (folder / "stderr.log").read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else f"exit code {code}"


def _keep(context: Context, id_: str, spec: TrainSpec, folder: Path, result: dict[str, Any], sides: Sides) -> Candidate:
    """Freeze the threshold on the validation patients; store model file, weights and, last, the record."""
    if before := result.get("epochs_before"):
        log.info("%s resumed after epoch %d of a training that was killed", spec.model, before)
    onnx, weights = (folder / result["onnx"]).read_bytes(), (folder / result["weights"]).read_bytes()
    valid, fitted = sides["validation"], sides["train"]
    probabilities = _score(onnx, spec, folder, valid)
    threshold = choose_threshold(
        valid.labels,
        probabilities,
        valid.codes,
        prevalence=float(fitted.labels.mean()),
        target_sensitivity=spec.target_sensitivity,
    )
    model_key, weights_key = candidate_key(id_, "model.onnx"), candidate_key(id_, result["weights"])
    context.store.put(model_key, onnx)
    context.store.put(weights_key, weights)
    batch_key = None
    # A picture of the first batch, for the report; optional.
    if (name := result.get("batch")) and (folder / name).exists():
        batch_key = candidate_key(id_, name)
        context.store.put(batch_key, (folder / name).read_bytes())
    candidate = Candidate(
        id=id_,
        spec=spec,
        model_key=model_key,
        model_sha256=sha256(onnx),
        model_bytes=len(onnx),
        weights_key=weights_key,
        weights_sha256=sha256(weights),
        threshold=threshold,
        validation=summarise(valid.scored(probabilities, threshold), resamples=context.settings.gate.resamples),
        history=tuple(EpochRecord.model_validate(epoch) for epoch in result["history"]),
        train_cells=len(fitted.labels),
        train_patients=fitted.patients_count,
        train_patients_digest=digest(sorted(set(fitted.patients))),
        batch_size=result.get("batch_size"),
        batch_key=batch_key,
        created_at=datetime.now(UTC),
        **{name: result[name] for name in COPIED},
    )
    context.records.save(candidate, id_)
    return candidate


def _score(onnx: bytes, spec: TrainSpec, folder: Path, valid: SideData) -> npt.NDArray[np.float64]:
    """Score the validation cells with the model file of a training, which may be unusable.

    Raises:
        TrainingFailed: when it is; its result is deleted, so that the next try trains again.
    """
    try:
        probabilities = ModelFile(onnx).score(valid.images).astype(np.float64)
        problem = "" if np.isfinite(probabilities).all() else "it scores some validation cells as NaN"
    except ModelFileInvalid as error:
        problem = error.message
    if problem:
        (folder / "result.json").unlink()
        raise TrainingFailed(
            f"the training of {spec.model} left an unusable model file: {problem}",
            "run the night again",
        )
    return probabilities


train_task = stage(train)
