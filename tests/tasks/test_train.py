"""Train: what a training is asked for, what is kept of it, and every way in which it can fail."""

from __future__ import annotations

import json
import logging
import stat
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra.local.files import Workspace
from tasks import models
from tasks import train as train_module
from tasks.cells.cell_data import CellData, load_cells
from tasks.context import Context
from tasks.progress import Step, watched_by
from tasks.train import train
from tasks.training.child import in_one_line
from tasks.training.specs import member_specs
from tests import ROOT
from tests.builders import (
    RED,
    CountingStore,
    Prepared,
    channel_member,
    context_over,
    leave_finished_training,
    plain_cells,
    prepare,
    small_settings,
)
from tests.fake_cnn import DefaultRecipe
from validation.digest import digest, sha256
from validation.errors import SettingsError, TrainingFailed
from validation.records import Member, TrainSpec

pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("no_expectations")]

CELLS = plain_cells(40, 2)
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
    """A member that is right about most cells."""
    path = tmp_path / "red.onnx"
    path.write_bytes(channel_member(RED))
    return path


def spec_of(prepared: Prepared, model: Path | str = "", **recipe: Any) -> TrainSpec:
    made = DefaultRecipe(model=str(model), **recipe)
    return TrainSpec(
        model="fake",
        member=2,
        split=prepared.split.id,
        side=16,
        seed=7,
        recipe=made.model_dump(mode="json"),
        recipe_version=1,
    )


def run(context: Context, prepared: Prepared, spec: TrainSpec) -> Member:
    return train(context, spec, prepared.split, prepared.pack)


def no_child(*_: Any, **__: Any) -> None:
    pytest.fail("it was trained again")


def scratch(context: Context) -> list[str]:
    return [path.name for path in (context.workspace.home / "scratch").iterdir()]


class TestSpec:
    def test_settings_make_the_recipe_of_every_member(self, home: Path) -> None:
        settings = small_settings(home, training={"side": 48, "seed": 3, "members": 4, "keras": {"epochs": "2"}})
        specs = member_specs(settings, "keras", "split")
        assert [spec.member for spec in specs] == [0, 1, 2, 3]
        assert {(spec.model, spec.split, spec.side, spec.seed) for spec in specs} == {("keras", "split", 48, 3)}
        assert {spec.recipe["epochs"] for spec in specs} == {2}
        assert len({digest(spec.model_dump(mode="json")) for spec in specs}) == 4

    @pytest.mark.parametrize("model", ["fastai", "keras"])
    def test_unknown_and_impossible_recipe_settings_are_refused_by_name(self, model: str, home: Path) -> None:
        settings = small_settings(home, training={model: {"epoch": 2, "batch_size": 0}})
        with pytest.raises(SettingsError) as caught:
            member_specs(settings, model, "split")
        assert f"setting training.{model}.epoch: " in caught.value.message
        assert f"setting training.{model}.batch_size: " in caught.value.message
        assert "epochs" in caught.value.hint

    def test_an_unknown_model_is_refused_with_the_known_ones(self, home: Path) -> None:
        with pytest.raises(SettingsError, match="unknown model 'caffe'") as caught:
            member_specs(small_settings(home), "caffe", "split")
        assert "fastai, keras" in caught.value.hint


def test_a_training_out_of_memory_resumes_with_half_the_batch(
    context: Context, prepared: Prepared, red_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    member = run(context, prepared, spec_of(prepared, red_model, behaviour="large", batch_size=16))
    assert (member.spec.recipe["batch_size"], member.batch_size) == (16, 4)
    assert "out of memory with batches of 8: again with 4" in caplog.text


def test_of_two_machines_that_train_a_member_at_once_one_counts(
    context: Context, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One store, two homes; their trainings differ in their last bits."""
    other, spec = replace(context, workspace=Workspace(tmp_path / "another home")), spec_of(prepared)
    leave_finished_training(context, spec, channel_member(RED, centre=104.0))
    leave_finished_training(other, spec, channel_member(RED, centre=105.0))
    prepare(other)
    check, winner = train_module._problem, list[Member]()

    def late(*arguments: Any) -> str:
        monkeypatch.setattr(train_module, "_problem", check)
        winner.append(run(other, prepared, spec))
        return check(*arguments)

    monkeypatch.setattr(train_module, "_problem", late)
    assert run(context, prepared, spec) == winner[0] == context.records.load(Member, winner[0].id)
    assert sha256(context.store.get(winner[0].model_key)) == winner[0].model_sha256
    files = [info.key for info in context.store.list(f"retraining/members/{winner[0].id}/")]
    assert sorted(files) == sorted([winner[0].model_key, winner[0].weights_key])


def test_a_training_becomes_a_member(
    context: Context, prepared: Prepared, red_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = spec_of(prepared, red_model)
    with caplog.at_level(logging.INFO):
        member = run(context, prepared, spec)
    assert member.id == digest(spec.model_dump(mode="json"))
    assert context.records.load(Member, member.id) == member
    assert context.store.get(member.model_key) == red_model.read_bytes()
    assert member.model_sha256 == sha256(red_model.read_bytes())
    assert member.model_bytes == len(red_model.read_bytes())
    assert [epoch.epoch for epoch in member.history] == [1, 2]
    assert (member.best_epoch, member.stopped, member.device) == (2, "finished", "cpu")
    assert member.versions == {"fake": "1.0"}
    assert member.seconds >= 0
    assert member.started_at is not None
    times = [member.started_at, *(epoch.ended_at for epoch in member.history if epoch.ended_at), member.created_at]
    assert times == sorted(times)
    assert len(times) == 4
    assert member.peak_memory_mb > 1
    assert "fake, member 3, epoch 2" in caplog.text
    assert "fake, member 3, trains on cpu, as its framework reports" in caplog.text
    assert scratch(context) == []


def test_a_gpu_that_is_not_used_is_warned_of_and_kept_or_an_error_with_what_to_do(
    context: Context,
    prepared: Prepared,
    red_model: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    why = "GPU 0 is not used: this CNN knows no GPU"
    assert run(context, prepared, spec_of(prepared, red_model)).unused_gpu == why
    assert f"fake, member 3: {why}" in caplog.text
    training = context.settings.training.model_copy(update={"unusable_gpu": "fail"})
    strict = replace(context, settings=context.settings.model_copy(update={"training": training}))
    with pytest.raises(TrainingFailed, match=why) as caught:
        run(strict, prepared, spec_of(prepared, red_model, epochs=3))
    assert "RETRAIN_TRAINING__UNUSABLE_GPU=warn" in caught.value.hint


def test_it_never_sees_the_patients_of_its_fold(context: Context, prepared: Prepared, red_model: Path) -> None:
    member = run(context, prepared, spec_of(prepared, red_model))
    weights = context.store.get(member.weights_key)
    assert sha256(weights) == member.weights_sha256
    given = json.loads(weights)
    assert given["seed"] == 7 + 2

    def cells_of(part: CellData) -> list[Any]:
        images = part.images[:]
        return [list(images.shape), int(images.sum()), part.labels.astype(float).tolist()]

    cells = load_cells(context, prepared.split, prepared.pack)
    fitted, tuning = cells.training(2), cells.tuning(2)
    assert given["train"] == cells_of(fitted)
    assert given["tuning"] == cells_of(tuning)
    assert given["patients"] == tuning.codes.tolist()
    assert len(set(given["patients"])) == tuning.patients_count > 1
    judged = set(cells.judged_by([2]).patients)
    assert judged
    assert not judged & (set(fitted.patients) | set(tuning.patients))
    assert not set(fitted.patients) & set(tuning.patients)
    assert (member.train_cells, member.train_patients) == (len(fitted), fitted.patients_count)
    assert member.tuning_patients == tuning.patients_count


def test_what_was_trained_is_not_trained_again(
    context: Context, prepared: Prepared, red_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(prepared, red_model)
    member = run(context, prepared, spec)
    monkeypatch.setattr(train_module, "_run_child", no_child)
    assert run(context, prepared, spec) == member


def test_another_seed_or_recipe_is_another_member(context: Context, prepared: Prepared, red_model: Path) -> None:
    spec = spec_of(prepared, red_model)
    others = [spec.model_copy(update={"seed": 8}), spec_of(prepared, red_model, epochs=3)]
    ids = {run(context, prepared, each).id for each in (spec, *others)}
    assert len(ids) == 3


def test_batches_are_told_while_a_training_goes_on(
    context: Context, prepared: Prepared, red_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Step] = []
    with watched_by(seen.append, 0.0):
        run(context, prepared, spec_of(prepared, red_model))
    told = [(step.doing, step.done, step.total) for step in seen if "batch" in step.doing]
    # The fake one tells of its first batch of two epochs; then it is over.
    assert told == [("fake, member 3: batch", 0, 2 * 5), ("fake, member 3: batch", 0, 0)]


def test_a_framework_may_print_what_it_likes(context: Context, prepared: Prepared, red_model: Path) -> None:
    member = run(context, prepared, spec_of(prepared, red_model, behaviour="chatty"))
    assert len(member.history) == 2


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        ("diverges", "loss became nan in epoch 2"),
        ("crashes", "ZeroDivisionError: in the middle of a batch"),
        ("page", r"RuntimeError: CUDA error: an illegal memory access For debugging set A=1\. Or not\.\n"),
        ("killed", r"killed by signal 9 \(out of memory, or out of time\?\)"),
        ("silent", "left no model"),
    ],
)
def test_a_training_that_fails_says_why_and_leaves_no_member(
    behaviour: str, why: str, context: Context, prepared: Prepared, red_model: Path
) -> None:
    spec = spec_of(prepared, red_model, behaviour=behaviour)
    with pytest.raises(TrainingFailed, match=why) as caught:
        run(context, prepared, spec)
    assert "of fake" in caught.value.message
    log = context.workspace.home / "scratch" / f"train-{digest(spec.model_dump(mode='json'))}" / "stderr.log"
    assert str(log) in caught.value.hint
    assert log.exists()
    assert context.records.ids(Member) == []
    with pytest.raises(TrainingFailed, match=why):
        run(context, prepared, spec)


def test_what_a_training_advises_reaches_its_reader(context: Context, prepared: Prepared, red_model: Path) -> None:
    with pytest.raises(TrainingFailed) as caught:
        run(context, prepared, spec_of(prepared, red_model, behaviour="diverges"))
    assert caught.value.hint.startswith("lower the learning rate; its output is in ")


def test_a_training_that_failed_says_what_it_got_to(context: Context, prepared: Prepared, red_model: Path) -> None:
    with pytest.raises(TrainingFailed) as caught:
        run(context, prepared, spec_of(prepared, red_model, behaviour="diverges"))
    error = caught.value
    assert [(epoch.epoch, epoch.valid_loss) for epoch in error.epochs] == [(1, 0.6), (2, 0.3)]
    times = [error.started_at, *(epoch.ended_at for epoch in error.epochs), error.ended_at]
    assert None not in times
    assert times == sorted(times)  # type: ignore[type-var]


TRACEBACK = """a framework's own words
Traceback (most recent call last):
  File "child.py", line 1, in <module>
    import numpy
    ^^^^^^^^^^^^
ImportError: libfoo.so: cannot open shared object file

The above was the direct cause of this:

Traceback (most recent call last):
  File "child.py", line 2, in <module>
ImportError: NumPy cannot be imported.

Things to try:
  * read the page
Good luck!
"""


@pytest.mark.parametrize(
    ("said", "code", "why"),
    [
        (TRACEBACK, 1, "ImportError: NumPy cannot be imported."),
        ("terminate called\nwhat(): no threads\n", 1, "what(): no threads"),
        ("", 3, "exit code 3"),
    ],
)
def test_a_training_that_ends_before_it_can_say_why_is_read_from_its_log(
    said: str, code: int, why: str, tmp_path: Path
) -> None:
    (tmp_path / "stderr.log").write_text(said)
    assert train_module._cause(tmp_path, code) == why


def test_of_a_page_of_an_error_the_beginning_and_the_end_are_told() -> None:
    nodes = "at a node\n" * 99
    told = in_one_line(RuntimeError(f"Graph execution error:\n\n{nodes}OOM when allocating"))
    assert told.startswith("RuntimeError: Graph execution error: at a node ")
    assert told.endswith("OOM when allocating")
    assert len(told) < 420
    assert in_one_line(ValueError()) == "ValueError"


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
        (channel_member(side=32), r"expected uint8 \[n, 32, 32, 3\], found uint8"),
        (channel_member(output_name="y"), "expected images uint8"),
        (channel_member(centre=float("nan")), "as NaN"),
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
    assert context.records.ids(Member) == []
    path.write_bytes(red_model.read_bytes())
    assert run(context, prepared, spec).model_sha256 == sha256(red_model.read_bytes())


def test_a_training_that_ended_when_its_parent_was_killed_is_kept(
    context: Context, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(prepared)
    leave_finished_training(context, spec, channel_member())
    monkeypatch.setattr(train_module, "_run_child", no_child)
    member = run(context, prepared, spec)
    assert member.model_sha256 == sha256(channel_member())
    assert scratch(context) == []


@pytest.mark.parametrize("harm", ["other model", "no weights", "torn result", "no result"])
def test_an_incomplete_result_is_trained_again(
    harm: str, context: Context, prepared: Prepared, red_model: Path
) -> None:
    spec = spec_of(prepared, red_model)
    folder = leave_finished_training(context, spec, channel_member())
    result = folder / "result.json"
    if harm == "other model":
        (folder / "model.onnx").write_bytes(channel_member(centre=90))
    elif harm == "no weights":
        (folder / "weights.bin").unlink()
    elif harm == "torn result":
        result.write_text(result.read_text()[:-20])
    else:
        result.unlink()
    assert run(context, prepared, spec).model_sha256 == sha256(red_model.read_bytes())


def test_a_member_without_both_classes_is_refused_before_training(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_over(CountingStore(plain_cells(1, 4)), home)
    prepared = prepare(context)
    monkeypatch.setattr(train_module, "_run_child", no_child)
    with pytest.raises(
        TrainingFailed, match=r"fake, member 3 would be trained on 0 patients without cells of both"
    ) as caught:
        run(context, prepared, spec_of(prepared))
    assert caught.value.hint


def test_a_training_is_named_on_prefects_page_by_its_member(context: Context) -> None:
    spec = member_specs(context.settings, "keras", "s" * 24)[2]
    assert train_module._run_name({"spec": spec, "context": context}) == "train keras 3/5"
