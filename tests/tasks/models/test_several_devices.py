"""One training on two devices, which are two parts of this machine's CPU: two processes for fastai, one for Keras."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from infra.processes.parent import tagged_processes
from infra.scoring.model_file import ModelFile
from tasks import models
from tasks.models.preparation import check_data
from tests.ahead import Lane
from tests.tasks.models.test_models import synthetic_cells
from validation.digest import sha256
from validation.errors import TrainingFailed

# The first test waits for all trainings.
pytestmark = [pytest.mark.longest, pytest.mark.slow(minutes=2)]

# An odd number of validation cells, and batches of odd size: nothing divides by two.
TRAIN, VALID = 135, 51
RECIPES: dict[str, dict[str, Any]] = {
    "fastai": {"architecture": "xresnet18", "small_share": 0.5},
    "keras": {"width": 16, "learning_rate": 0.01, "dropout": 0.0},
}


class Done(NamedTuple):
    """A training that has ended: its exit code, its report, its folder."""

    code: int
    told: list[dict[str, Any]]
    said: str
    folder: Path
    left: list[int]

    @property
    def result(self) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads((self.folder / "result.json").read_text())
        return shown

    @property
    def digest(self) -> str:
        return sha256((self.folder / "model.onnx").read_bytes())


def ahead(lane: Lane) -> dict[str, Done]:
    """Each CNN undisturbed; again, killed and resumed; and each kind of failure."""
    done = {}
    for name in models.model_names():
        done[name] = train(lane, name, "whole")
        killed = "killed@1" if name == "fastai" else "killed@0"
        done[f"{name} killed"] = train(lane, name, "again", harm=killed)
        done[f"{name} again"] = train(lane, name, "again")
    done["no memory"] = train(lane, "fastai", "small", harm="no memory@1", epochs=1)
    done["diverged"] = train(lane, "fastai", "diverged", learning_rate=1e30)
    return done


def train(lane: Lane, name: str, job: str, *, harm: str = "", **recipe: Any) -> Done:
    folder = lane.folder / "devices" / name / job
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = synthetic_cells(TRAIN + VALID, 3)
    np.save(folder / "pack.npy", images)
    np.save(folder / "labels.npy", labels)
    np.save(folder / "patients.npy", np.arange(VALID))
    request = {
        "model": name, "seed": 1, "devices": 2, "pack": str(folder / "pack.npy"), "train": [0, TRAIN],
        "validation": [TRAIN, TRAIN + VALID], "start": None,
        "recipe": {"epochs": 4, "batch_size": 16, "min_steps": 0, "views": 1} | RECIPES[name] | recipe,
    }  # fmt: skip
    (folder / "request.json").write_text(json.dumps(request))
    mark = f"{name} {job} {harm}"
    command = [sys.executable, "-m", "tests.one_training", str(os.getpid()), str(folder)]
    ended = lane.run(command, HARM=harm, MALARIA_MACHINE=mark)
    told = [json.loads(line) for line in ended.stdout.splitlines()]
    return Done(ended.returncode, told, ended.stderr, folder, tagged_processes(mark))


@pytest.fixture(scope="module", params=models.model_names())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_devices_and_each_epoch_are_reported_once(name: str, ahead: dict[str, Done]) -> None:
    done = ahead[name]
    assert done.code == 0, done.said
    assert done.result["device"] == "2 x cpu"
    assert [message["epoch"]["epoch"] for message in done.told] == [1, 2, 3, 4]
    assert done.told[-1]["epoch"] == done.result["history"][-1]
    assert done.left == []


def test_it_learns(name: str, ahead: dict[str, Done]) -> None:
    history = ahead[name].result["history"]
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert min(epoch["valid_loss"] for epoch in history) < 0.5
    assert max(epoch["valid_accuracy"] for epoch in history) > 0.8


def test_the_recorded_loss_is_that_of_all_validation_cells(name: str, ahead: dict[str, Done]) -> None:
    images, labels = synthetic_cells(TRAIN + VALID, 3)
    result = ahead[name].result
    p = ModelFile((ahead[name].folder / "model.onnx").read_bytes()).score(images[TRAIN:]).astype(np.float64)
    p = np.clip(p, 1e-12, 1 - 1e-12)
    loss = float(-np.mean(np.where(labels[TRAIN:] > 0.5, np.log(p), np.log(1 - p))))
    assert loss == pytest.approx(result["history"][result["best_epoch"] - 1]["valid_loss"], abs=1e-4)


def test_a_training_with_a_killed_rank_leaves_nothing_and_resumes_to_the_same_model(
    name: str, ahead: dict[str, Done]
) -> None:
    killed, again = ahead[f"{name} killed"], ahead[f"{name} again"]
    assert killed.code != 0
    assert killed.left == []
    assert again.code == 0, again.said
    assert again.result["epochs_before"] >= 1
    assert again.digest == ahead[name].digest


def test_no_memory_on_one_device_halves_the_batch_of_all(ahead: dict[str, Done]) -> None:
    done = ahead["no memory"]
    assert done.code == 0, done.said
    assert [message["warning"] for message in done.told if "warning" in message] == [
        "out of memory with batches of 16: again with 8"
    ]
    assert done.result["batch_size"] == 8


def test_a_diverging_loss_is_reported_once_by_the_first_rank(ahead: dict[str, Done]) -> None:
    done = ahead["diverged"]
    assert (done.code, len(done.told)) == (1, 1)
    assert "training loss became nan" in done.told[0]["error"]
    assert done.left == []


@pytest.mark.parametrize(("cells", "valid", "batch_size"), [(20, 20, 3), (3, 20, 8), (20, 3, 8)])
def test_too_few_cells_for_all_devices_are_refused(cells: int, valid: int, batch_size: int) -> None:
    data = models.TrainingData(*synthetic_cells(cells, 1), *synthetic_cells(valid, 2))
    check_data(data, "fastai", batch_size, 1)
    with pytest.raises(TrainingFailed, match="2 devices need batches, and sets, of at least 4 cells, found 3") as found:
        check_data(data, "fastai", batch_size, 2)
    assert "RETRAIN_TRAINING__DEVICES" in found.value.hint
