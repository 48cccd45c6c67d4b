"""Train: one member of a CNN, in its own process, on the patients outside its fold."""

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

from infra.environment import CODE_ROOT
from infra.inherited import of_work
from infra.scoring.model_file import MemberFile
from infra.store.keys import member_key
from tasks.cells.cell_data import CellData, load_cells
from tasks.context import Context
from tasks.progress import Progress
from tasks.stage import stage
from tasks.training.specs import find_member
from validation.digest import sha256
from validation.errors import ModelFileInvalid, TrainingFailed
from validation.records import EpochRecord, Member, Pack, Split, TrainSpec

log = logging.getLogger(__name__)

# Fields of the child's result that a member has under the same name.
COPIED = ("best_epoch", "stopped", "versions", "device", "seconds", "peak_memory_mb")
# Loading the framework and writing the files come on top of the fit's own deadline.
GRACE_SECONDS = 300.0
# A training may take hours, and each of its epochs has a line too.
BATCHES_EVERY_SECONDS = 30.0
# Between two looks at whether a training has to be ended.
LOOK_SECONDS = 0.2


def train(
    context: Context,
    spec: TrainSpec,
    split: Split,
    pack: Pack,
    variables: Mapping[str, str] | None = None,
    stop: threading.Event | None = None,
) -> Member:
    """Return the member of ``spec``, trained unless it is stored already.

    ``variables`` of its process say where it is trained: which GPU, how many threads. ``stop`` ends it.

    Raises:
        TrainingFailed: when the training ends without a model, for any reason.
    """
    id_, stored = find_member(context, spec)
    if stored is not None:
        return stored
    folder = context.workspace.scratch(f"train-{id_}")
    cells = load_cells(context, split, pack)
    fitted, tuning = cells.training(spec.member), cells.tuning(spec.member)
    for name, part in {"trained": fitted, "tuned": tuning}.items():
        if len(set(part.labels.tolist())) < 2:
            raise TrainingFailed(
                f"{describe(spec)} would be {name} on {part.patients_count} patients without cells of both classes",
                "more patients are needed",
            )
    if (result := _finished(folder)) is None:
        _write_request(context, folder, spec, pack, fitted, tuning)
        _run_child(folder, spec, variables or {}, stop or threading.Event())
        result = _finished(folder)
    if result is None:
        raise TrainingFailed(f"the training of {describe(spec)} left no model", f"see {folder / 'stderr.log'}")
    member = _keep(context, id_, spec, folder, result, fitted, tuning)
    shutil.rmtree(folder)
    return member


def describe(spec: TrainSpec) -> str:
    """Return the name of a training for people: the CNN and the number of its member, from 1."""
    return f"{spec.model}, member {spec.member + 1}"


def _write_request(
    context: Context, folder: Path, spec: TrainSpec, pack: Pack, fitted: CellData, tuning: CellData
) -> None:
    buffer = io.BytesIO()  # NumPy's own writing hides a full disk
    np.savez(
        buffer,
        train=fitted.rows,
        train_labels=fitted.labels.astype(np.float32),
        tuning=tuning.rows,
        tuning_labels=tuning.labels.astype(np.float32),
        tuning_patients=tuning.codes,
    )
    (folder / "rows.npz").write_bytes(buffer.getvalue())
    request = {
        "model": spec.model,
        "recipe": spec.recipe,
        # Members differ by their patients and by chance.
        "seed": spec.seed + spec.member,
        "pack": str(context.workspace.pack_path(pack.id)),
        "unusable_gpu": context.settings.training.unusable_gpu,
    }
    (folder / "request.json").write_text(json.dumps(request))


def _finished(folder: Path) -> dict[str, Any] | None:
    """Return the result of a finished training, also when its parent was killed before storing it."""
    try:
        result: dict[str, Any] = json.loads((folder / "result.json").read_text())
        whole = all(sha256((folder / name).read_bytes()) == expected for name, expected in result["sha256"].items())
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return result if whole else None


def _run_child(folder: Path, spec: TrainSpec, variables: Mapping[str, str], stop: threading.Event) -> None:
    limit = float(spec.recipe["deadline_seconds"]) + GRACE_SECONDS
    command = [sys.executable, "-m", "tasks.training.child", str(os.getpid()), str(folder)]
    with (
        (folder / "stderr.log").open("wb") as errors,
        subprocess.Popen(
            command, cwd=CODE_ROOT, env={**of_work(os.environ), **variables},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True,
        ) as child,
    ):  # fmt: skip
        # The fit checks its own deadline between batches; this is for one that hangs, and for a night that is stopped.
        started_at, started, ended = datetime.now(UTC), time.monotonic(), threading.Event()

        def guard() -> None:
            while not ended.wait(LOOK_SECONDS):
                if stop.is_set() or time.monotonic() - started >= limit:
                    child.kill()

        threading.Thread(target=guard, daemon=True).start()
        try:
            told, epochs = _relay(child.stdout or (), spec)
            code = child.wait()
        finally:
            ended.set()
            child.kill()
        if code and time.monotonic() - started >= limit:
            told = {"error": f"it did not end within {limit:g} s and was killed by signal {-code}"}
    if code:
        hint = f"{told['hint']}; " if told.get("hint") else ""
        raise TrainingFailed(
            f"the training of {describe(spec)} ended without a model: {told.get('error') or _cause(folder, code)}",
            f"{hint}its output is in {folder / 'stderr.log'}; the night can be run again",
        ).after(epochs, started_at, datetime.now(UTC))


def _relay(lines: Iterable[bytes], spec: TrainSpec) -> tuple[dict[str, str], list[EpochRecord]]:
    """Log what a training reports; return the ``error`` and ``hint`` that it reports, if any, and its epochs.

    Batches go to those who watch progress. How many there are in all is known at the end: patience may run out.
    """
    problem: dict[str, str] = {}
    epochs: list[EpochRecord] = []
    progress = None
    for line in lines:
        try:
            message = json.loads(line)
        except ValueError:
            continue  # a line torn by a kill
        if "error" in message:
            problem = message
        elif "warning" in message:
            log.warning("%s: %s", describe(spec), message["warning"])
        elif "batch" in message:
            done, total = message["batch"]
            progress = progress or Progress(log, f"{describe(spec)}: batch", total, log_every=BATCHES_EVERY_SECONDS)
            progress.reach(done, total)
        elif "device" in message:
            log.info("%s, trains on %s, as its framework reports", describe(spec), message["device"])
        else:
            epoch = EpochRecord.model_validate(message["epoch"])
            # Where memory ran out, the training began again with smaller batches.
            epochs = [*(known for known in epochs if known.epoch < epoch.epoch), epoch]
            accuracy = "" if epoch.valid_accuracy is None else f", accuracy {epoch.valid_accuracy:.4f}"
            log.info(
                "%s, epoch %d: training loss %.4f, tuning loss %.4f%s (%.0f s)",
                *(describe(spec), epoch.epoch, epoch.train_loss, epoch.valid_loss, accuracy, epoch.seconds),
            )
    if progress is not None:
        progress.end()
    return problem, epochs


def _cause(folder: Path, code: int) -> str:
    """Return why a training ended that did not say so itself."""
    if code < 0:
        return f"killed by signal {-code}" + (" (out of memory, or out of time?)" if code == -9 else "")
    _, traced, text = (folder / "stderr.log").read_text(errors="replace").rpartition("Traceback (most recent")
    # After a traceback's indented lines comes the error; its message may have more lines than that.
    lines = [line for line in text.splitlines()[bool(traced) :] if line.strip() and not (traced and line[0].isspace())]
    if not lines:
        return f"exit code {code}"
    return (lines[0] if traced else lines[-1]).strip()[:300]


def _keep(
    context: Context,
    id_: str,
    spec: TrainSpec,
    folder: Path,
    result: dict[str, Any],
    fitted: CellData,
    tuning: CellData,
) -> Member:
    """Store a member's file, its weights and, last, its record."""
    onnx, weights = (folder / result["onnx"]).read_bytes(), (folder / result["weights"]).read_bytes()
    history = tuple(EpochRecord.model_validate(epoch) for epoch in result["history"])
    if problem := _problem(onnx, tuning):
        (folder / "result.json").unlink()  # so that the next try trains again
        raise TrainingFailed(
            f"the training of {describe(spec)} left an unusable model file: {problem}", "run the night again"
        ).after(history, None, datetime.now(UTC))
    # Another machine may train the same member: with its digest in its name, no file takes the place of another.
    name = sha256(onnx)[:16]
    model_key, weights_key = member_key(id_, f"{name}.onnx"), member_key(id_, f"{name}.{result['weights']}")
    context.store.put(model_key, onnx)
    context.store.put(weights_key, weights)
    batch_key = None
    # A picture of the first batch, for the report; optional.
    if (picture := result.get("batch")) and (folder / picture).exists():
        batch_key = member_key(id_, f"{name}.{picture}")
        context.store.put(batch_key, (folder / picture).read_bytes())
    member = Member(
        id=id_,
        spec=spec,
        model_key=model_key,
        model_sha256=sha256(onnx),
        model_bytes=len(onnx),
        weights_key=weights_key,
        weights_sha256=sha256(weights),
        history=history,
        train_cells=len(fitted),
        train_patients=fitted.patients_count,
        tuning_patients=tuning.patients_count,
        batch_size=result.get("batch_size"),
        unused_gpu=result.get("unused_gpu"),
        batch_key=batch_key,
        started_at=result.get("started_at"),
        created_at=datetime.now(UTC),
        **{name: result[name] for name in COPIED},
    )
    stored = context.records.save_once(member, id_)
    if stored.model_key != model_key:
        log.info("%s was trained by another machine at the same time: its file counts", describe(spec))
        for key in filter(None, (model_key, weights_key, batch_key)):
            context.store.delete(key)
    return stored


def _problem(onnx: bytes, tuning: CellData) -> str:
    """Score the tuning cells with the file of a training; return why it cannot be used, empty if it can."""
    try:
        finite = np.isfinite(MemberFile(onnx).score_logits(tuning.images)).all()
    except ModelFileInvalid as error:
        return error.message
    return "" if finite else "it scores some tuning cells as NaN"


def _run_name(arguments: dict[str, Any]) -> str:
    spec, members = arguments["spec"], arguments["context"].settings.training.members
    return f"train {spec.model} {spec.member + 1}/{members}"


train_task = stage(train, run_name=_run_name)
