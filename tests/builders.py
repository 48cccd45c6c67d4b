"""What tests of several floors build on: small settings, cells, model files and trainings. All of them are real."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from infra.local.files import Workspace
from infra.registry.registry import Registry
from infra.scoring.model_file import LOGIT
from infra.settings.settings import Settings
from infra.store.base import Store
from infra.store.folder import FolderStore
from infra.store.keys import LABELED, candidate_key, member_key
from infra.store.memory import MemoryStore
from infra.store.records import Records
from tasks.combine import combine
from tasks.context import Context
from tasks.intake.synthetic_cells import SyntheticPlan, folder_of, night_cells
from tasks.models.onnx_file import combine as combine_files
from tasks.pack import pack
from tasks.pull import pull
from tasks.split import split
from tasks.train import train
from tasks.training.specs import member_specs
from tasks.validate import validate
from tests import model_files
from validation.digest import digest, sha256
from validation.patients import FOLDS
from validation.records import (
    NEGATIVE,
    POSITIVE,
    Candidate,
    ChampionRef,
    Decision,
    EpochRecord,
    Interval,
    Member,
    Metrics,
    Pack,
    Snapshot,
    Split,
    TrainSpec,
    ValidationResult,
    Verdict,
)

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
RED, GREEN, SIDE = model_files.RED, model_files.GREEN, model_files.SIDE
single_network = model_files.single_network
# The least that passes; a test that is about a rule sets that rule.
SMALL: dict[str, dict[str, Any]] = {
    "data": {"min_cells_per_class": 2, "min_patients_per_class": 2},
    "gate": {"resamples": 1_000, "min_patients": 3, "min_cells_per_class": 5},
    "training": {"side": SIDE, "at_once": 1},
}


class CountingStore(MemoryStore):
    """A store in memory that counts what is fetched, and fails where it is told to."""

    def __init__(self, objects: dict[str, bytes] | None = None) -> None:
        super().__init__("memory://counting")
        self.objects.update(objects or {})
        self.fetched: Counter[str] = Counter()
        self.broken: dict[str, Exception] = {}

    def get(self, key: str) -> bytes:
        if key in self.broken:
            raise self.broken[key]
        if key.startswith(LABELED):
            self.fetched[key] += 1
        return super().get(key)


def small_settings(home: Path, **sections: Any) -> Settings:
    """Return settings for small batches; a section given as a dict is laid over ``SMALL``."""
    merged: dict[str, Any] = {name: {**SMALL[name], **sections.pop(name, {})} for name in SMALL}
    return Settings(home=home, **merged, **sections)


def context_over(store: Store, home: Path, **sections: Any) -> Context:
    """Return a context over any store."""
    return Context(small_settings(home, store=store.uri, **sections), store, Records(store), Workspace(home))


def folder_context(home: Path, objects: dict[str, bytes], **sections: Any) -> Context:
    """Return a context over a folder that holds ``objects``."""
    store = FolderStore(home / "store")
    store.root.mkdir(parents=True)
    for key, data in objects.items():
        store.put(key, data)
    return context_over(store, home, **sections)


def with_settings(context: Context, **sections: Any) -> Context:
    """Return the same surroundings under other settings."""
    return replace(context, settings=small_settings(context.settings.home, store=context.store.uri, **sections))


def synthetic_cells(night: int = 1, **plan: Any) -> dict[str, bytes]:
    """Return the project's own synthetic cells, few and small, as key -> PNG."""
    small = {"patients": 12, "cells_per_patient": 4, "new_patients": 4, "scale": 0.3, **plan}
    return {LABELED + folder_of(cell): cell.png for cell in night_cells(night, SyntheticPlan(**small))}


def png(pixels: Any, **options: Any) -> bytes:
    """Return pixels uint8 [height, width, 3] (or a Pillow image) as a PNG file."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels, np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def plain_cells(patients: int = 60, each: int = 6, *, seed: int = 1, first: int = 1) -> dict[str, bytes]:
    """Return cells of one colour with noise, half of each class for every patient, as key -> PNG.

    Green tells the class of every cell; red tells it of four in five. So a model that looks at green
    (``channel_model``) is right, and one that looks at red is worse.
    """
    rng = np.random.default_rng(seed)
    cells = {}
    for patient in range(first, first + patients):
        for number in range(each):
            positive = number % 2 == 0
            told = positive if rng.random() < 0.8 else not positive
            pixels = rng.integers(-20, 21, (20, 18, 3)) + np.array([60 + 120 * told, 60 + 120 * positive, 100])
            name = f"C{patient}P{patient}ThinF_IMG_20260101_cell_{number}.png"
            cells[f"{LABELED}{POSITIVE if positive else NEGATIVE}/{name}"] = png(pixels)
    return cells


def channel_member(channel: int = GREEN, **options: Any) -> bytes:
    """Return a member's file: its logit is an image's mean in one colour channel (tests.model_files.single_network)."""
    return single_network(channel, output=LOGIT, **options)


def channel_model(channel: int = GREEN, *, folds: Sequence[int] = range(FOLDS), **member: Any) -> bytes:
    """Return a candidate's file of equal members: ``channel_member`` for each of ``folds``."""
    return combine_files([(fold, channel_member(channel, **member)) for fold in folds])


class Prepared(NamedTuple):
    """What lies before the trainings of a night."""

    snapshot: Snapshot
    validation: ValidationResult
    split: Split
    pack: Pack


def prepare(context: Context, champion: ChampionRef | None = None) -> Prepared:
    """Run all stages up to the pack, as a night does that begins with ``champion``."""
    snapshot = pull(context)
    validation = validate(context, snapshot, champion)
    divided = split(context, validation)
    return Prepared(snapshot, validation, divided, pack(context, divided))


def leave_finished_training(context: Context, spec: TrainSpec, model: bytes) -> Path:
    """Leave behind what a training process leaves when its parent was killed just after; return the folder."""
    folder = context.workspace.scratch(f"train-{digest(spec.model_dump(mode='json'))}")
    files = {"model.onnx": model, "weights.bin": b"weights"}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    epoch = {"epoch": 1, "train_loss": 0.5, "valid_loss": 0.4, "seconds": 0.1}
    result = {
        "onnx": "model.onnx",
        "weights": "weights.bin",
        "history": [epoch],
        "best_epoch": 1,
        "stopped": "finished",
        "device": "cpu",
        "versions": {"framework": "1.0"},
        "sha256": {name: sha256(data) for name, data in files.items()},
        "seconds": 0.2,
        "peak_memory_mb": 10.0,
    }
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def leave_finished_trainings(context: Context, name: str, split: str, member: bytes) -> None:
    """Leave behind the trainings of all members of a CNN, each of which ended with ``member``."""
    for spec in member_specs(context.settings, name, split):
        leave_finished_training(context, spec, member)


def candidate_of(
    context: Context, prepared: Prepared, member: bytes, *, name: str = "fastai", seed: int = 1
) -> Candidate:
    """Return a stored candidate, each of whose trainings is said to have made ``member``."""
    specs = [spec.model_copy(update={"seed": seed}) for spec in member_specs(context.settings, name, prepared.split.id)]
    for spec in specs:
        leave_finished_training(context, spec, member)
    members = [train(context, spec, prepared.split, prepared.pack) for spec in specs]
    return combine(context, members, {}, prepared.split, prepared.pack)


def registry_in(home: Path, empty: Path) -> Registry:
    """Return a registry of its own, from a copy of the fixture ``empty_registry``."""
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "mlflow.db").exists():
        shutil.copy(empty, home / "mlflow.db")
    return Registry(Settings(home=home))


def metrics_of(value: float, *, cells: int = 100, patients: int = 10, spread: float = 0.01) -> Metrics:
    """Return metrics that are all ``value``, give or take ``spread``, on as many cells of either class."""
    interval = Interval(value=value, low=value - spread, high=value + spread)
    right = round(cells / 2 * value)
    return Metrics(
        cells=cells,
        patients=patients,
        threshold=0.5,
        tp=right,
        fn=cells // 2 - right,
        tn=right,
        fp=cells // 2 - right,
        accuracy=interval,
        balanced_accuracy=interval,
        auc=interval,
        sensitivity=interval,
        specificity=interval,
        log_loss=1 - value,
    )


def made_up_member(fold: int, *, name: str = "fastai") -> Member:
    """Return a member that nothing was trained for."""
    id_ = f"{fold}" * 24
    return Member(
        id=id_,
        spec=TrainSpec(
            model=name, member=fold, split="5" * 24, side=SIDE, seed=1, recipe={"epochs": 2}, recipe_version=1
        ),
        model_key=member_key(id_, "member.onnx"),
        model_sha256="0" * 64,
        model_bytes=10,
        weights_key=member_key(id_, "weights.bin"),
        weights_sha256="0" * 64,
        history=(EpochRecord(epoch=1, train_loss=0.5, valid_loss=0.4, seconds=0.1),),
        best_epoch=1,
        stopped="finished",
        train_cells=10,
        train_patients=2,
        tuning_patients=1,
        versions={"framework": "1.0"},
        device="cpu",
        seconds=0.2,
        peak_memory_mb=10.0,
        created_at=NOON,
    )


def made_up_candidate(model: bytes, *, name: str = "fastai", id_: str = "c" * 24, valid: float = 0.95) -> Candidate:
    """Return a candidate that nothing was trained for; only its model file is real."""
    return Candidate(
        id=id_,
        model=name,
        split="5" * 24,
        side=SIDE,
        members=tuple(made_up_member(fold, name=name) for fold in range(FOLDS)),
        model_key=candidate_key(id_, "model.onnx"),
        model_sha256=sha256(model),
        model_bytes=len(model),
        threshold=0.1 + 0.2,  # no short decimal: a registry must give back the very same float
        tuning=metrics_of(valid),
        train_patients=2,
        train_patients_digest="d" * 24,
        created_at=NOON,
    )


def made_up_decision(
    id_: str = "e" * 24, *, verdict: Verdict = Verdict.PROMOTED, before: ChampionRef | None = None
) -> Decision:
    """Return a decision that rests on nothing."""
    return Decision(
        id=id_,
        verdict=verdict,
        sentence=f"It was {verdict.value}",
        snapshot="1" * 24,
        validation="2" * 24,
        split="3" * 24,
        candidates=("c" * 24,),
        failed_trainings={},
        challenger="c" * 24,
        champion_before=before,
        evaluation=None,
        gates=(),
        further_patients=None,
        synthetic=True,
        decided_at=NOON,
    )
