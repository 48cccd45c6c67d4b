"""One contract over both CNNs. Every fit runs in a child process, so that no process ever loads both frameworks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from scipy.special import expit

from infra.scoring.model_file import MemberFile, ModelFile
from infra.store.folder import FolderStore
from infra.store.records import Records
from tasks import models
from tasks.models import preparation as _common
from tasks.models import variation
from tasks.models.onnx_file import combine
from tasks.models.schedule import Schedule
from tasks.models.selection import Selection, is_significantly_higher
from tests import ROOT
from tests.ahead import Lane
from tests.builders import made_up_member
from tests.fake_cnn import DefaultRecipe
from tests.fleet import until
from tests.held_cells import SEED, SIZE, VARIATIONS
from tests.infra.processes.test_parent import is_alive, is_gone
from validation.statistics.calibration import temperature_of

FRAMEWORKS = {"fastai": {"torch", "fastai"}, "keras": {"tensorflow", "keras"}}
SIDE = 32
HANDFUL = 3
# The smallest of each family: these tests are about the contract of fit(), not about accuracy.
SMALL: dict[str, dict[str, Any]] = {
    "fastai": {
        "batch_size": 16,
        "min_steps": 0,
        "stain": 0.0,
        "zoom": 0.0,
        "architecture": "xresnet18",
        "small_share": 0.2,
    },
    "keras": {"batch_size": 16, "min_steps": 0, "stain": 0.0, "zoom": 0.0, "width": 8},
}

# One process, several fits: importing a framework takes longer than each of them.
CHILD = """
import json, sys, time
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import tasks.models as models
from tasks.models.progress import heard_by
from tasks.models.rows import Rows
from tests.held_cells import hold_on_device, iterators_tuned, releases, show_on_device, shown_batches
from tests.small_xresnet import shrink
from validation.errors import TrainingFailed

name, folder, jobs = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
cells = np.load(folder.parent / "cells.npz")
model = models.get_model(name)
if name == "fastai":
    shrink()
results, shown, tuned = {}, shown_batches(name), iterators_tuned() if name == "keras" else []
released = releases(shown)
batches = []
for job in jobs:
    heard = []
    batches.clear()
    shown.clear()
    released.clear()
    def on_epoch(record):
        heard.append(record.epoch)
        if len(heard) == job.get("clock_jumps_after"):
            models.time = SimpleNamespace(monotonic=lambda: time.monotonic() + 1e6)
    hold_on_device(name, job.get("held", False))
    flip = job.get("tuning_labels") == "inverted"
    n, v = job.get("train", 150), job.get("tuning", 50)
    tuning = cells["tuning_labels"][:v]
    data = models.TrainingData(
        Rows(cells["train_images"], np.arange(n)), cells["train_labels"][:n],
        Rows(cells["tuning_images"], np.arange(v)), 1 - tuning if flip else tuning,
    )
    recipe = model.DefaultRecipe(**json.loads(sys.argv[4]) | job["recipe"])
    try:
        with heard_by(lambda done, total: batches.append((done, total))):
            fitted = model.fit(data, recipe, seed=job["seed"], folder=folder / job["name"], on_epoch=on_epoch)
    except TrainingFailed as error:
        results[job["name"]] = {"failed": str(error)}
        continue
    finally:
        models.time = time
    results[job["name"]] = {
        "temperature": fitted.temperature,
        "onnx": str(fitted.onnx), "weights": str(fitted.weights), "stopped": fitted.stopped,
        "best_epoch": fitted.best_epoch, "device": fitted.device, "versions": fitted.versions, "heard": heard,
        "batches": list(batches),
        "batch": str(fitted.batch), "made_here": len(shown), "released": list(released),
        "first": [cell.tobytes().hex() for cell in shown[0]] if job["name"] == "plain" else [],
        "history": [record.model_dump() for record in fitted.history],
        "native": model.predict_native(fitted.weights, recipe, cells["tuning_images"]).tolist(),
    }
np.savez(folder / "shown.npz", **show_on_device(name, cells["train_images"]))
loaded = [m for m in ("torch", "fastai", "tensorflow", "keras") if m in sys.modules]
(folder / "results.json").write_text(json.dumps({"jobs": results, "loaded": loaded, "tuned": tuned}))
"""

# fmt: off
# As few as there are branches: compiling and exporting one of Keras's networks takes longer than its epochs.
JOBS: list[dict[str, Any]] = [
    {"name": "plain", "seed": 3, "recipe": {"epochs": 4, "patience": 4, "views": 4, "stain": 0.1, "zoom": 0.1}},
    # As on a GPU: the cells are stored on the device and augmented there.
    {"name": "held", "seed": 3, "held": True,
     "recipe": {"epochs": 4, "patience": 4, "views": 4, "stain": 0.1, "zoom": 0.1}},
    # Better on training cells is worse on these: an early epoch is kept, and patience runs out.
    {"name": "early", "seed": 3, "tuning_labels": "inverted",
     "recipe": {"epochs": 30, "patience": 3, "cooldown": 2}},
    # A handful of cells, and fewer than a batch.
    {"name": "late", "seed": 3, "clock_jumps_after": 2, "train": 17, "tuning": HANDFUL,
     "recipe": {"epochs": 30, "patience": 30, "batch_size": 64}},
    {"name": "hopeless", "seed": 3, "recipe": {"epochs": 2, "deadline_seconds": 1e-3}},
    {"name": "diverging", "seed": 3, "recipe": {"epochs": 2, "learning_rate": 1e30}},
]
# fmt: on


def synthetic_cells(count: int, seed: int) -> tuple[models.Images, models.Labels]:
    """Return discs on black, every second one with a dark spot inside: a minimal parasite."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    disc = (x - SIDE / 2) ** 2 + (y - SIDE / 2) ** 2 < (SIDE / 2 - 2) ** 2
    images = np.where(disc[None, ..., None], rng.normal(190, 12, (count, SIDE, SIDE, 3)), 0)
    labels = (np.arange(count) % 2 == 0).astype(np.float32)
    for cell in np.flatnonzero(labels):
        left, top = rng.uniform(10, SIDE - 10, 2)
        images[cell][(x - left) ** 2 + (y - top) ** 2 < 16] = (90, 30, 120)
    return np.clip(images, 0, 255).astype(np.uint8), labels


class MadeCells(NamedTuple):
    """What the fits are trained and tuned on."""

    train_images: models.Images
    train_labels: models.Labels
    tuning_images: models.Images
    tuning_labels: models.Labels


class Fits(NamedTuple):
    """The results of one child process."""

    jobs: dict[str, Any]
    shown: dict[str, npt.NDArray[Any]]
    loaded: set[str]
    # For each of TensorFlow's passes over a dataset, whether it was autotuned.
    tuned: list[bool]
    said: str


def ahead(lane: Lane) -> dict[str, Fits]:
    """Every family's fits, and two of them again, in a second process; see tests.ahead."""
    folder = lane.folder / "models"
    folder.mkdir()
    np.savez(folder / "cells.npz", **made_cells()._asdict())
    done = {}
    for name in models.model_names():
        done[name] = run_child(lane, name, folder / name, JOBS)
        done[f"{name} again"] = run_child(lane, name, folder / f"{name}-again", [JOBS[0], JOBS[1]])
    return done


def run_child(lane: Lane, name: str, folder: Path, jobs: list[dict[str, Any]]) -> Fits:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", CHILD, name, str(folder), json.dumps(jobs), json.dumps(SMALL[name])]
    done = lane.run(command, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((folder / "results.json").read_text())
    with np.load(folder / "shown.npz") as shown:
        cells = dict(shown)
    return Fits(results["jobs"], cells, set(results["loaded"]), results["tuned"], done.stdout + done.stderr)


def made_cells() -> MadeCells:
    return MadeCells(*synthetic_cells(150, 1), *synthetic_cells(50, 2))


@pytest.fixture(scope="module")
def cells() -> MadeCells:
    return made_cells()


@pytest.fixture(scope="module", params=models.model_names())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def fits(name: str, ahead: dict[str, Fits]) -> Fits:
    return ahead[name]


def score_logits(onnx: str, images: models.Images) -> npt.NDArray[np.float32]:
    return MemberFile.open(Path(onnx)).score_logits(images)


def score(onnx: str, images: models.Images) -> npt.NDArray[np.float32]:
    return np.asarray(expit(score_logits(onnx, images)), np.float32)


def cross_entropy(scores: npt.NDArray[np.float32], labels: models.Labels) -> float:
    p = np.clip(scores.astype(np.float64), 1e-12, 1 - 1e-12)
    return float(-np.mean(np.where(labels > 0.5, np.log(p), np.log(1 - p))))


def test_importing_the_models_loads_no_framework() -> None:
    code = (
        "import sys, tasks.models as m; [m.get_model(n) for n in m.model_names()]; "
        "print([f for f in ('torch', 'fastai', 'tensorflow', 'keras', 'onnx') if f in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow(minutes=2)
@pytest.mark.timeout(1800)
class TestFit:
    def test_the_process_never_loads_the_other_framework(self, name: str, fits: Fits) -> None:
        assert fits.loaded == FRAMEWORKS[name]

    def test_no_pass_over_the_cells_waits_for_autotuning(self, name: str, fits: Fits) -> None:
        """TensorFlow's tuner sleeps for longer and longer, and each end of a pass waited for it."""
        assert bool(fits.tuned) == (name == "keras")
        assert not any(fits.tuned)

    def test_memory_is_released_within_an_epoch(self, name: str, fits: Fits) -> None:
        """Fragmented blocks that torch has freed grow with the number of batches, not of epochs."""
        plain = fits.jobs["plain"]
        if name == "keras":
            assert plain["released"] == []  # allocates nothing that grows
            return
        epoch = plain["made_here"] // 4
        assert epoch > 2 * 3
        assert np.diff([0, *plain["released"], plain["made_here"]]).max() <= 3

    def test_it_prints_nothing(self, fits: Fits) -> None:
        assert fits.said == ""

    def test_the_file_of_a_member_keeps_its_contract(self, fits: Fits, cells: MadeCells) -> None:
        import onnx
        import onnxruntime

        path = fits.jobs["plain"]["onnx"]
        onnx.checker.check_model(path, full_check=True)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (taken,), (given,) = session.get_inputs(), session.get_outputs()
        assert (taken.name, taken.type, taken.shape) == ("images", "tensor(uint8)", ["n", SIDE, SIDE, 3])
        assert (given.name, given.type, given.shape) == ("logit", "tensor(float)", ["n"])
        for n in (1, 7):
            logits = score_logits(path, cells.tuning_images[:n])
            assert logits.shape == (n,)
            assert logits.dtype == np.float32

    def test_the_file_is_self_contained(self, fits: Fits, cells: MadeCells, tmp_path: Path) -> None:
        alone = tmp_path / "alone.onnx"
        alone.write_bytes(Path(fits.jobs["plain"]["onnx"]).read_bytes())
        assert score(str(alone), cells.tuning_images[:3]).shape == (3,)

    def test_a_cells_score_does_not_depend_on_its_batch(self, fits: Fits, cells: MadeCells) -> None:
        images = cells.tuning_images
        alone = np.concatenate([score(fits.jobs["plain"]["onnx"], images[i : i + 1]) for i in range(5)])
        np.testing.assert_allclose(alone, score(fits.jobs["plain"]["onnx"], images)[:5], atol=1e-5)

    def test_onnxruntime_agrees_with_the_framework(self, fits: Fits, cells: MadeCells) -> None:
        # The file has its weights in half precision (docs/training.md).
        for job in ("plain", "early", "late"):
            scores = score(fits.jobs[job]["onnx"], cells.tuning_images)
            np.testing.assert_allclose(scores, fits.jobs[job]["native"], atol=1e-3)

    def test_the_docs_lines_open_the_weights_in_their_framework(
        self, name: str, fits: Fits, cells: MadeCells, home: Path, tmp_path: Path
    ) -> None:
        snippets = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "registry.md").read_text(), re.DOTALL)
        [snippet] = [one for one in snippets if {"fastai": "import torch", "keras": "import keras"}[name] in one]
        statements = [line for line in snippet.partition("\n\ncontext")[2].splitlines() if line]
        assert len(statements) <= 10
        member = made_up_member(0, name=name)
        spec = member.spec.model_copy(update={"side": SIDE, "recipe": SMALL[name]})
        store = FolderStore(home / "store")
        store.root.mkdir(parents=True)
        Records(store).save(member.model_copy(update={"spec": spec}), member.id)
        store.put(member.weights_key, Path(fits.jobs["early"]["weights"]).read_bytes())
        pictures = [tmp_path / f"{number}.png" for number in range(5)]
        for path, image in zip(pictures, cells.tuning_images, strict=False):
            Image.fromarray(image).save(path)
        small = "from tests.small_xresnet import shrink\nshrink()\n" if name == "fastai" else ""
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", small + snippet, member.id, *map(str, pictures)],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        said = [line.rpartition(" ") for line in done.stdout.splitlines()]
        assert [path for path, _, _ in said] == list(map(str, pictures))
        np.testing.assert_allclose([float(p) for _, _, p in said], fits.jobs["early"]["native"][:5], atol=1e-5)

    def test_every_epoch_is_recorded_and_reported(self, fits: Fits) -> None:
        fitted = fits.jobs["plain"]
        assert fitted["stopped"] == "finished"
        assert fitted["heard"] == [record["epoch"] for record in fitted["history"]] == [1, 2, 3, 4]
        total = fitted["batches"][0][1]
        assert fitted["batches"] == [[done, total] for done in range(total)]
        for record in fitted["history"]:
            assert record["learning_rate"] > 0
            assert record["seconds"] > 0
            assert 0 <= record["valid_accuracy"] <= 1
            assert 0 <= record["train_accuracy"] <= 1
        assert fitted["history"][-1]["train_loss"] < fitted["history"][0]["train_loss"]
        assert fitted["device"] == "cpu" or fitted["device"].startswith("cuda: ")
        assert "onnx_opset" in fitted["versions"]

    @pytest.mark.parametrize("job", ["early", "late"])
    def test_the_epoch_that_is_kept_is_what_is_exported(self, job: str, fits: Fits, cells: MadeCells) -> None:
        fitted = fits.jobs[job]
        kept = max((record for record in fitted["history"] if record["is_kept"]), key=lambda record: record["epoch"])
        labels = cells.tuning_labels[: HANDFUL if job == "late" else None]
        scores = score(fitted["onnx"], cells.tuning_images[: len(labels)])
        assert fitted["best_epoch"] == kept["epoch"]
        assert cross_entropy(scores, 1 - labels if job == "early" else labels) == pytest.approx(
            kept["valid_loss"], rel=1e-3
        )

    def test_members_make_a_candidate_whose_score_is_their_mean_logits(self, fits: Fits, cells: MadeCells) -> None:
        paths = [Path(fits.jobs[job]["onnx"]) for job in ("plain", "early")]
        candidate = ModelFile(combine([(fold, path.read_bytes()) for fold, path in enumerate(paths)]))
        mean = np.mean([score_logits(str(path), cells.tuning_images) for path in paths], axis=0)
        np.testing.assert_allclose(candidate.score(cells.tuning_images), expit(mean), atol=1e-5)

    def test_a_cell_and_its_mirror_images_score_the_same(self, fits: Fits, cells: MadeCells) -> None:
        path, images = fits.jobs["plain"]["onnx"], cells.tuning_images
        scores = score(path, images)
        for axes in (1, 2, (1, 2)):
            np.testing.assert_allclose(score(path, np.flip(images, axes)), scores, atol=1e-5)
        assert np.abs(score(path, np.rot90(images, axes=(1, 2))) - scores).max() > 1e-3

    def test_a_cell_in_another_light_scores_the_same(self, fits: Fits, cells: MadeCells) -> None:
        path, images = fits.jobs["plain"]["onnx"], cells.tuning_images
        lit = np.where(images.any(axis=3, keepdims=True), images + np.array([-20, 5, 9], np.int16), 0)
        assert 0 <= lit.min() <= lit.max() <= 255
        np.testing.assert_allclose(score(path, lit.astype(np.uint8)), score(path, images), atol=1e-4)

    def test_a_picture_without_a_cell_has_a_score(self, fits: Fits) -> None:
        (scored,) = score(fits.jobs["plain"]["onnx"], np.zeros((1, SIDE, SIDE, 3), np.uint8))
        assert 0 < scored < 1

    def test_the_temperature_is_the_best_for_the_averaged_logits(self, fits: Fits, cells: MadeCells) -> None:
        logits = score_logits(fits.jobs["plain"]["onnx"], cells.tuning_images) * fits.jobs["plain"]["temperature"]
        assert temperature_of(logits, cells.tuning_labels > 0.5) == pytest.approx(
            fits.jobs["plain"]["temperature"], rel=1e-2
        )

    def test_patience_ends_the_fit(self, name: str, fits: Fits) -> None:
        fitted = fits.jobs["early"]
        losses = [record["valid_loss"] for record in fitted["history"]]
        flat, first = len(losses) - 2, 6 if name == "fastai" else 0  # losses of small cells are ignored
        assert fitted["stopped"] == "early"
        assert len(losses) < 30
        assert flat - 1 - (first + int(np.argmin(losses[first:flat]))) == 3
        rates = [record["learning_rate"] for record in fitted["history"]]
        assert rates[flat - 1] == max(rates)
        assert rates[-1] < 0.01 * max(rates)

    def test_the_deadline_ends_the_fit_with_what_there_is_on_a_handful_of_cells_too(self, fits: Fits) -> None:
        assert fits.jobs["late"]["stopped"] == "deadline"
        assert len(fits.jobs["late"]["history"]) == 2

    def test_a_deadline_before_the_first_epoch_is_a_failed_training(self, fits: Fits) -> None:
        assert "no epoch ended within" in fits.jobs["hopeless"]["failed"]

    def test_a_diverging_loss_is_a_failed_training(self, fits: Fits) -> None:
        assert "loss became" in fits.jobs["diverging"]["failed"]

    def test_cells_on_the_device_are_augmented_as_on_the_cpu(self, name: str, fits: Fits) -> None:
        """Up to rounding: occasionally one grey level, two where the stain amplifies it."""
        images = made_cells().train_images
        for called, how in VARIATIONS.items():
            here = variation.augment(images, how, np.random.default_rng(SEED)).astype(np.int64)
            there = fits.shown[called]
            assert there.dtype == np.uint8
            assert here.any(axis=(1, 2, 3)).all()
            assert np.abs(here - there).max() <= 2
            assert np.abs(here - there).mean() < 1e-3
        if name == "fastai":
            np.testing.assert_array_equal(fits.shown["shrunk"], variation.shrunk(images, SIZE))

    def test_a_training_on_cells_on_the_device_is_like_one_from_the_cpu(self, fits: Fits) -> None:
        held, here = fits.jobs["held"]["history"], fits.jobs["plain"]["history"]
        assert held[0]["train_loss"] == pytest.approx(here[0]["train_loss"], rel=0.02)
        assert held[-1]["train_loss"] < held[0]["train_loss"]
        assert fits.jobs["held"]["made_here"] == 0, "the device varies them itself"
        assert fits.jobs["plain"]["made_here"] > 0

    def test_the_picture_shows_the_first_batch(self, fits: Fits) -> None:
        fitted = fits.jobs["plain"]
        with Image.open(fitted["batch"]) as sheet:
            tiles = np.asarray(sheet).reshape(4, SIDE, 8, SIDE, 3).transpose(0, 2, 1, 3, 4).reshape(-1, SIDE, SIDE, 3)
        drawn = [tile.tobytes().hex() for tile in tiles if tile.any()]
        assert len(drawn) >= 16
        assert sorted(drawn) == sorted(fitted["first"])

    def test_the_same_training_gives_the_same_file(self, name: str, fits: Fits, ahead: dict[str, Fits]) -> None:
        for job in ("plain", "held"):
            first, second = fits.jobs[job], ahead[f"{name} again"].jobs[job]
            assert [r["valid_loss"] for r in second["history"]] == [r["valid_loss"] for r in first["history"]]
            assert Path(second["onnx"]).read_bytes() == Path(first["onnx"]).read_bytes()


# A night that is killed in the middle of the training that it has started. What that reports goes to a file: a broken
# pipe would end it too, and only when it has something to report.
NIGHT = """
import os, subprocess, sys
command = [sys.executable, "-m", "tasks.training.child", str(os.getpid()), sys.argv[1]]
with open(sys.argv[2], "w") as report, subprocess.Popen(command, stdout=report, start_new_session=True) as child:
    print(child.pid, flush=True)
"""


@pytest.mark.longest
@pytest.mark.slow
def test_a_training_ends_when_its_night_is_killed_in_an_epoch(name: str, cells: MadeCells, tmp_path: Path) -> None:
    np.save(tmp_path / "pack.npy", np.concatenate([cells.train_images, cells.tuning_images]))
    rows: dict[str, Any] = {"train": np.arange(150), "tuning": np.arange(150, 200), "tuning_patients": np.arange(50)}
    rows |= {"train_labels": cells.train_labels, "tuning_labels": cells.tuning_labels}
    np.savez(tmp_path / "rows.npz", **rows)
    endless = SMALL[name] | {"epochs": 10_000, "patience": 10_000}
    request = {"model": name, "seed": 3, "pack": str(tmp_path / "pack.npy"), "unusable_gpu": "warn", "recipe": endless}
    (tmp_path / "request.json").write_text(json.dumps(request))
    report = tmp_path / "report"
    command = [sys.executable, "-c", NIGHT, str(tmp_path), str(report)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as night:
        assert night.stdout
        training = int(night.stdout.readline())
        until(lambda: '"epoch"' in report.read_text())
        assert is_alive(training)
        night.kill()
    assert is_gone(training)
    assert not (tmp_path / "result.json").exists()


class TestSelection:
    """Ten patients of twenty cells, a logit of one in favour of the truth unless given."""

    LABELS = np.tile([0.0, 1.0], 100).astype(np.float32)
    PATIENTS = np.repeat(np.arange(10), 20)
    TRUTH = np.where(LABELS > 0.5, 1.0, -1.0)

    def selection(self, labels: models.Labels = LABELS, patients: Any = PATIENTS) -> Selection:
        images = np.zeros((len(labels), 1, 1, 3), np.uint8)
        return Selection(models.TrainingData(images, labels, images, labels, patients))

    def test_the_first_epoch_is_kept_and_a_better_one_too(self) -> None:
        selection, noise = self.selection(), np.random.default_rng(1).normal(0, 1, 200)
        first, second = selection.judge(self.TRUTH + 2 * noise), selection.judge(self.TRUTH + noise)
        assert first.is_kept
        assert second.is_kept
        assert second.loss < first.loss
        assert second.accuracy > first.accuracy

    def test_an_epoch_that_is_worse_by_chance_is_kept_and_one_that_is_worse_on_all_patients_is_not(self) -> None:
        rng = np.random.default_rng(1)
        alike = [self.TRUTH + rng.normal(0, 1, 200) for _ in range(2)]
        better, worse = sorted(alike, key=lambda logits: self.selection().judge(logits).loss)
        selection = self.selection()
        lowest = selection.judge(better).loss
        assert selection.judge(worse).loss > lowest
        assert selection.judge(worse).is_kept
        assert not selection.judge(0.2 * self.TRUTH + rng.normal(0, 2, 200)).is_kept

    def test_one_patient_with_wrong_labels_does_not_decide(self) -> None:
        before = np.ones(200)
        after = np.where(self.PATIENTS == 3, before + 2, before - 0.05)
        assert after.mean() > before.mean()
        assert not is_significantly_higher(after, before, self.PATIENTS)
        assert is_significantly_higher(after, before, np.arange(200)), "twenty cells would"

    def test_judging_is_idempotent(self) -> None:
        selection, logits = self.selection(), self.TRUTH + np.random.default_rng(1).normal(0, 1, 200)
        assert selection.judge(logits) == selection.judge(logits)

    def test_one_patient_alone_is_never_significant(self) -> None:
        assert not is_significantly_higher(np.full(8, 2.0), np.ones(8), np.zeros(8, np.int64))
        assert is_significantly_higher(np.full(8, 2.0), np.ones(8), np.arange(8))

    def test_the_error_is_that_of_drawing_patients(self) -> None:
        rng = np.random.default_rng(2)
        patients = np.repeat(np.arange(40), rng.integers(5, 60, 40))
        difference = rng.normal(0, 1, 40)[patients] + rng.normal(0, 0.3, len(patients))
        sums, cells = np.bincount(patients, difference), np.bincount(patients)
        drawn = rng.integers(0, 40, (20_000, 40))
        error = (sums[drawn].sum(axis=1) / cells[drawn].sum(axis=1)).std()
        # Shifted by 1.8 and 2.2 of the standard errors found by resampling patients.
        moved = difference - difference.mean()
        assert not is_significantly_higher(moved + 1.8 * error, np.zeros(len(patients)), patients)
        assert is_significantly_higher(moved + 2.2 * error, np.zeros(len(patients)), patients)


class TestCommon:
    @pytest.mark.parametrize(("cells", "batch_size"), [(17, 64), (33, 16), (150, 16), (64, 64), (65, 64)])
    def test_batches_contain_every_cell_once_and_are_never_short(self, cells: int, batch_size: int) -> None:
        dealt = _common.shuffled_batches(cells, batch_size, seed=1, epoch=2)
        assert sorted(np.concatenate(dealt)) == list(range(cells))
        assert min(map(len, dealt)) >= min(cells, batch_size)
        assert len(dealt) == _common.batch_count(cells, batch_size)

    def test_small_sets_get_more_epochs_and_as_much_more_patience(self) -> None:
        recipe = DefaultRecipe(epochs=6, batch_size=32, min_steps=300, warmup=1, patience=2, cooldown=2)
        assert _common.schedule_of(recipe, 4641) == Schedule(6, 2, 2, 1)
        assert _common.schedule_of(recipe, 4641, small_share=0.4) == Schedule(6, 2, 2, 1, first=2)
        assert _common.schedule_of(recipe, 640) == Schedule(15, 5, 5, 2.5)

    def test_variation_turns_by_any_angle_and_mirrors_and_keeps_black_black(self) -> None:
        cell = np.zeros((1, 33, 33, 3), np.uint8)
        cell[0, 4:9, 14:19] = (100, 150, 200)
        cell[0, 16:19, 26:29] = (100, 150, 200)
        many = variation.augment(np.repeat(cell, 400, axis=0), models.Variation(0, 0, 0.2), np.random.default_rng(0))
        lit = many.any(axis=-1)
        assert (lit.sum(axis=(1, 2)) < 80).all()
        # The large spot is anywhere around the centre, the small one on either side of it.
        weight = many.astype(np.float64).sum(axis=-1) * lit
        y, x = np.mgrid[:33, :33] - 16.0
        angle = np.arctan2((weight * y).sum(axis=(1, 2)), (weight * x).sum(axis=(1, 2)))
        assert np.histogram(angle, bins=8, range=(-np.pi, np.pi))[0].min() > 25
        assert len(np.unique(many.reshape(400, -1).max(axis=1))) > 20

    def test_without_variation_a_cell_keeps_size_and_colour(self) -> None:
        images, _ = synthetic_cells(16, 5)
        turned = variation.augment(images, models.Variation(0, 0, 0), np.random.default_rng(0))
        before, after = images.astype(np.float64), turned.astype(np.float64)
        np.testing.assert_allclose(after.mean(axis=(1, 2, 3)), before.mean(axis=(1, 2, 3)), rtol=0.03)

    def test_zoom_and_shift_change_size_and_place(self) -> None:
        images, _ = synthetic_cells(64, 5)
        y, x = np.mgrid[:SIDE, :SIDE]

        def spreads(cells: models.Images) -> tuple[float, float]:
            lit = cells.any(axis=-1)
            area = lit.sum(axis=(1, 2))
            middles = np.stack([(lit * x).sum(axis=(1, 2)), (lit * y).sum(axis=(1, 2))], axis=1) / area[:, None]
            return float(area.std() / area.mean()), float(middles.std(axis=0).mean())

        rng = np.random.default_rng(0)
        still, zoomed = (variation.augment(images, models.Variation(zoom, 0, 0), rng) for zoom in (0.0, 0.1))
        moved = variation.augment(images, models.Variation(0, 2, 0), rng)
        assert spreads(zoomed)[0] > spreads(still)[0] + 0.05
        assert spreads(moved)[1] > spreads(still)[1] + 0.5

    def test_smoothed_labels_keep_their_side(self) -> None:
        np.testing.assert_allclose(_common.smoothed(np.array([0, 1], np.float32), 0.1), [0.05, 0.95])

    def test_shrunk_cells_keep_their_look(self) -> None:
        images, _ = synthetic_cells(4, 5)
        small = variation.shrunk(images, 0.75)
        assert small.shape == (4, 24, 24, 3)
        np.testing.assert_allclose(small.mean(axis=(1, 2, 3)), images.mean(axis=(1, 2, 3)), rtol=0.03)
