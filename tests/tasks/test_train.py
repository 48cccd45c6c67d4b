"""Train: what a training is asked for, what is kept of it, and every way in which it can fail."""

from __future__ import annotations

import json
import logging
import stat
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.scoring.model_file import ModelFile
from tasks import models
from tasks import train as train_module
from tasks.cells.side_data import SideData, load_side
from tasks.context import Context
from tasks.train import train
from tasks.training.specs import train_spec
from tests import ROOT
from tests.builders import (
    RED,
    CountingStore,
    Prepared,
    channel_model,
    context_over,
    leave_finished_training,
    plain_cells,
    prepare,
    small_settings,
)
from tests.fake_cnn import DefaultRecipe
from validation.digest import digest, sha256
from validation.errors import SettingsError, TrainingFailed
from validation.records import Candidate, TrainSpec
from validation.statistics.threshold import choose_threshold

pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("no_expectations")]

CELLS = plain_cells(30, 2)
# Runs instead of the interpreter: registers the fake CNN, then runs the real training process.
PYTHON = """#!/bin/sh
exec {python} -c "
import runpy, sys, tasks.models
tasks.models._MODULES['fake'] = 'tests.fake_cnn'
sys.argv = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)
" "$@"
"""


@pytest.fixture
def context(home: Path) -> Context:
    return context_over(CountingStore(CELLS), home)


@pytest.fixture
def prepared(context: Context) -> Prepared:
    return prepare(context)


@pytest.fixture(autouse=True)
def fake_cnn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text(PYTHON.format(python=sys.executable))
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setitem(models._MODULES, "fake", "tests.fake_cnn")


@pytest.fixture
def red_model(tmp_path: Path) -> Path:
    """A model that is right about most cells, so that its threshold matters."""
    path = tmp_path / "red.onnx"
    path.write_bytes(channel_model(RED))
    return path


def spec_of(prepared: Prepared, model: Path | str = "", **recipe: Any) -> TrainSpec:
    made = DefaultRecipe(model=str(model), **recipe)
    return TrainSpec(
        model="fake", split=prepared.split.id, side=16, seed=7, recipe=made.model_dump(mode="json"), recipe_version=1
    )


def run(context: Context, prepared: Prepared, spec: TrainSpec) -> Candidate:
    return train(context, spec, prepared.split, prepared.pack)


def no_child(*_: Any, **__: Any) -> None:
    pytest.fail("it was trained again")


def scratch(context: Context) -> list[str]:
    return [path.name for path in (context.workspace.home / "scratch").iterdir()]


class TestSpec:
    def test_settings_make_the_recipe(self, home: Path) -> None:
        settings = small_settings(home, training={"side": 48, "seed": 3, "keras": {"epochs": "2"}})
        spec = train_spec(settings, "keras", "split")
        assert (spec.model, spec.split, spec.side, spec.seed) == ("keras", "split", 48, 3)
        assert spec.recipe["epochs"] == 2
        assert spec.recipe["patience"] > 0
        assert spec.target_sensitivity is None

    def test_another_aim_of_the_threshold_is_another_training(self, home: Path) -> None:
        plain, aimed = (
            train_spec(small_settings(home, training={"target_sensitivity": aim}), "keras", "split")
            for aim in (None, 0.97)
        )
        assert aimed.target_sensitivity == 0.97
        assert digest(plain.model_dump(mode="json")) != digest(aimed.model_dump(mode="json"))

    @pytest.mark.parametrize("model", ["fastai", "keras"])
    def test_unknown_and_impossible_recipe_settings_are_refused_by_name(self, model: str, home: Path) -> None:
        settings = small_settings(home, training={model: {"epoch": 2, "batch_size": 0}})
        with pytest.raises(SettingsError) as caught:
            train_spec(settings, model, "split")
        assert f"setting training.{model}.epoch: " in caught.value.message
        assert f"setting training.{model}.batch_size: " in caught.value.message
        assert "epochs" in caught.value.hint

    def test_an_unknown_model_is_refused_with_the_known_ones(self, home: Path) -> None:
        with pytest.raises(SettingsError, match="unknown model 'caffe'") as caught:
            train_spec(small_settings(home), "caffe", "split")
        assert "fastai, keras" in caught.value.hint


def test_a_training_out_of_memory_resumes_with_half_the_batch(
    context: Context, prepared: Prepared, red_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    candidate = run(context, prepared, spec_of(prepared, red_model, behaviour="large", batch_size=16))
    assert (candidate.spec.recipe["batch_size"], candidate.batch_size) == (16, 4)
    assert "out of memory with batches of 8: again with 4" in caplog.text


def test_a_training_becomes_a_candidate(
    context: Context, prepared: Prepared, red_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = spec_of(prepared, red_model)
    with caplog.at_level(logging.INFO):
        candidate = run(context, prepared, spec)
    assert candidate.id == digest(spec.model_dump(mode="json"))
    assert context.records.load(Candidate, candidate.id) == candidate
    assert context.store.get(candidate.model_key) == red_model.read_bytes()
    assert candidate.model_sha256 == sha256(red_model.read_bytes())
    assert candidate.model_bytes == len(red_model.read_bytes())
    assert [epoch.epoch for epoch in candidate.history] == [1, 2]
    assert (candidate.best_epoch, candidate.stopped, candidate.device) == (2, "finished", "cpu")
    assert candidate.versions == {"fake": "1.0"}
    assert candidate.seconds >= 0
    assert candidate.peak_memory_mb > 1
    assert "fake epoch 2" in caplog.text
    assert scratch(context) == []


def test_it_is_fitted_on_the_training_side_and_never_sees_the_holdout(
    context: Context, prepared: Prepared, red_model: Path
) -> None:
    candidate = run(context, prepared, spec_of(prepared, red_model))
    weights = context.store.get(candidate.weights_key)
    assert sha256(weights) == candidate.weights_sha256
    given = json.loads(weights)
    assert given["seed"] == 7

    def cells_of(side: SideData) -> list[Any]:
        return [list(side.images.shape), int(np.asarray(side.images).sum()), side.labels.astype(float).tolist()]

    train_side, valid_side = (load_side(context, prepared.split, prepared.pack, s) for s in train_module.SIDES)
    assert given["train"] == cells_of(train_side)
    assert given["validation"] == cells_of(valid_side)
    assert given["patients"] == valid_side.codes.tolist()
    assert len(set(given["patients"])) == valid_side.patients_count > 1
    assert candidate.train_cells == len(train_side.keys)
    assert candidate.train_patients == train_side.patients_count
    assert candidate.train_patients_digest == digest(sorted(set(train_side.patients)))


def test_it_starts_from_the_given_weights(context: Context, prepared: Prepared, red_model: Path) -> None:
    cold = run(context, prepared, spec_of(prepared, red_model))
    spec = spec_of(prepared, red_model).model_copy(update={"start": cold.id})
    warm = run(context, prepared, spec)
    assert warm.id == digest(spec.model_dump(mode="json")) != cold.id
    started = [json.loads(context.store.get(candidate.weights_key))["start"] for candidate in (cold, warm)]
    assert started == [None, cold.weights_sha256]


def test_it_does_not_start_from_other_weights_than_recorded(
    context: Context, prepared: Prepared, red_model: Path
) -> None:
    cold = run(context, prepared, spec_of(prepared, red_model))
    context.store.put(cold.weights_key, b"others")
    with pytest.raises(TrainingFailed, match="are not those that were recorded"):
        run(context, prepared, spec_of(prepared, red_model).model_copy(update={"start": cold.id}))


def test_the_threshold_is_frozen_on_validation_patients_as_the_model_file_scores_them(
    context: Context, prepared: Prepared, red_model: Path
) -> None:
    candidate = run(context, prepared, spec_of(prepared, red_model))
    side = load_side(context, prepared.split, prepared.pack, "validation")
    scores = ModelFile(red_model.read_bytes()).score(side.images).astype(np.float64)
    trained = load_side(context, prepared.split, prepared.pack, "train")
    chosen = choose_threshold(side.labels, scores, side.codes, prevalence=float(trained.labels.mean()))
    assert candidate.threshold == candidate.validation.threshold == chosen
    calls = scores >= candidate.threshold
    assert candidate.validation.tp == (calls & side.labels).sum()
    assert candidate.validation.fp == (calls & ~side.labels).sum()
    assert candidate.validation.cells == len(side.keys)
    assert candidate.validation.patients == prepared.split.validation_side.patients


def test_what_was_trained_is_not_trained_again(
    context: Context, prepared: Prepared, red_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(prepared, red_model)
    candidate = run(context, prepared, spec)
    monkeypatch.setattr(train_module, "_run_child", no_child)
    assert run(context, prepared, spec) == candidate


def test_another_seed_or_recipe_is_another_candidate(context: Context, prepared: Prepared, red_model: Path) -> None:
    spec = spec_of(prepared, red_model)
    others = [spec.model_copy(update={"seed": 8}), spec_of(prepared, red_model, epochs=3)]
    ids = {run(context, prepared, each).id for each in (spec, *others)}
    assert len(ids) == 3


def test_a_framework_may_print_what_it_likes(context: Context, prepared: Prepared, red_model: Path) -> None:
    candidate = run(context, prepared, spec_of(prepared, red_model, behaviour="chatty"))
    assert len(candidate.history) == 2


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        ("diverges", "loss became nan in epoch 2"),
        ("crashes", "ZeroDivisionError: in the middle of a batch"),
        ("killed", r"killed by signal 9 \(out of memory, or out of time\?\)"),
        ("silent", "left no model"),
    ],
)
def test_a_training_that_fails_says_why_and_leaves_no_candidate(
    behaviour: str, why: str, context: Context, prepared: Prepared, red_model: Path
) -> None:
    spec = spec_of(prepared, red_model, behaviour=behaviour)
    with pytest.raises(TrainingFailed, match=why) as caught:
        run(context, prepared, spec)
    assert "of fake" in caught.value.message
    log = context.workspace.home / "scratch" / f"train-{digest(spec.model_dump(mode='json'))}" / "stderr.log"
    assert str(log) in caught.value.hint
    assert log.exists()
    assert context.records.ids(Candidate) == []
    with pytest.raises(TrainingFailed, match=why):
        run(context, prepared, spec)


def test_a_training_that_hangs_is_killed_after_its_deadline(
    context: Context, prepared: Prepared, red_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "GRACE_SECONDS", 1.0)
    with pytest.raises(TrainingFailed, match="killed by signal 9"):
        run(context, prepared, spec_of(prepared, red_model, behaviour="hangs", deadline_seconds=0.5))


def test_a_training_that_cannot_start_is_a_failed_training(context: Context, prepared: Prepared) -> None:
    with pytest.raises(TrainingFailed, match="No such file or directory"):
        run(context, prepared, spec_of(prepared, "/nowhere/model.onnx"))


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (b"no model", "not a usable ONNX model"),
        (channel_model(side=32), r"expected uint8 \[n, 32, 32, 3\], found uint8"),
        (channel_model(output_name="y"), "expected images uint8"),
        (channel_model(centre=float("nan")), "as NaN"),
    ],
    ids=["rubbish", "other side", "other contract", "nan"],
)
def test_an_unusable_model_file_is_a_failed_training_and_is_trained_again(
    model: bytes, why: str, context: Context, prepared: Prepared, red_model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(model)
    spec = spec_of(prepared, path)
    with pytest.raises(TrainingFailed, match=f"left an unusable model file: .*{why}"):
        run(context, prepared, spec)
    assert context.records.ids(Candidate) == []
    path.write_bytes(red_model.read_bytes())
    assert run(context, prepared, spec).model_sha256 == sha256(red_model.read_bytes())


def test_a_training_that_ended_when_its_parent_was_killed_is_kept(
    context: Context, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(prepared)
    leave_finished_training(context, spec, channel_model())
    monkeypatch.setattr(train_module, "_run_child", no_child)
    candidate = run(context, prepared, spec)
    assert candidate.model_sha256 == sha256(channel_model())
    assert candidate.validation.balanced_accuracy is not None
    assert candidate.validation.balanced_accuracy.value == 1.0
    assert scratch(context) == []


@pytest.mark.parametrize("harm", ["other model", "no weights", "torn result", "no result"])
def test_an_incomplete_result_is_trained_again(
    harm: str, context: Context, prepared: Prepared, red_model: Path
) -> None:
    spec = spec_of(prepared, red_model)
    folder = leave_finished_training(context, spec, channel_model())
    result = folder / "result.json"
    if harm == "other model":
        (folder / "model.onnx").write_bytes(channel_model(centre=90))
    elif harm == "no weights":
        (folder / "weights.bin").unlink()
    elif harm == "torn result":
        result.write_text(result.read_text()[:-20])
    else:
        result.unlink()
    assert run(context, prepared, spec).model_sha256 == sha256(red_model.read_bytes())


def test_a_side_without_both_classes_is_refused_before_training(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_over(CountingStore(plain_cells(1, 4)), home)
    prepared = prepare(context)
    monkeypatch.setattr(train_module, "_run_child", no_child)
    with pytest.raises(TrainingFailed, match="side of the split has 0 patients") as caught:
        run(context, prepared, spec_of(prepared))
    assert caught.value.hint
