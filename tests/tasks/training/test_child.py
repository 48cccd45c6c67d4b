"""What the process that trains a member gives to it: rows of the pack, read as they are needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tasks import models
from tasks.models.rows import Rows
from tasks.training.child import main
from tasks.training.device import ask_device, device_here
from tests import ROOT, fake_cnn
from tests.conv_model import conv_model
from validation.digest import sha256
from validation.errors import TrainingFailed

pytestmark = pytest.mark.thorough

SIDE = 8


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A request to train the fake CNN on rows 4, 0, 2 of a pack of six cells and to tune it on rows 5, 1."""
    monkeypatch.setitem(models._MODULES, "fake", "tests.fake_cnn")
    np.save(
        tmp_path / "pack.npy", np.arange(6, dtype=np.uint8)[:, None, None, None] + np.zeros((6, SIDE, SIDE, 3), "u1")
    )
    np.savez(
        tmp_path / "rows.npz",
        train=np.array([4, 0, 2]),
        train_labels=np.array([1, 0, 1], np.float32),
        tuning=np.array([5, 1]),
        tuning_labels=np.array([0, 1], np.float32),
        tuning_patients=np.array([7, 3]),
    )
    (tmp_path / "member.onnx").write_bytes(conv_model(SIDE, output="logit"))
    request = {
        "model": "fake",
        "seed": 3,
        "pack": str(tmp_path / "pack.npy"),
        "unusable_gpu": "warn",
        "recipe": {"model": str(tmp_path / "member.onnx")},
    }
    (tmp_path / "request.json").write_text(json.dumps(request))
    return tmp_path


def test_a_member_gets_its_rows_and_the_result_says_how_it_went(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    main(folder)
    result = json.loads((folder / "result.json").read_text())
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert told == [{"device": "cpu"}, {"batch": [0, 10]}, *({"epoch": epoch} for epoch in result["history"])]
    assert len(told) == 4
    assert result["unused_gpu"] is None
    assert result["sha256"]["model.onnx"] == sha256((folder / "member.onnx").read_bytes())
    pixels = SIDE * SIDE * 3
    assert json.loads((folder / result["weights"]).read_text()) == {
        "seed": 3,
        "train": [[3, SIDE, SIDE, 3], 6 * pixels, [1, 0, 1]],
        "tuning": [[2, SIDE, SIDE, 3], 6 * pixels, [0, 1]],
        "patients": [7, 3],
    }


class TestUnusedGpu:
    WHY = "GPU 0 is not used: this CNN knows no GPU"

    @pytest.fixture(autouse=True)
    def a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdout", sys.stdout)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")

    def told(self, capsys: pytest.CaptureFixture[str]) -> list[dict[str, str]]:
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    def test_it_is_told_and_kept(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        main(folder)
        assert self.told(capsys)[:2] == [{"device": "cpu"}, {"warning": self.WHY}]
        assert json.loads((folder / "result.json").read_text())["unused_gpu"] == self.WHY

    def test_it_is_an_error_where_the_setting_says_so(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        request = json.loads((folder / "request.json").read_text()) | {"unusable_gpu": "fail"}
        (folder / "request.json").write_text(json.dumps(request))
        with pytest.raises(SystemExit):
            main(folder)
        device, error = self.told(capsys)
        assert (device["device"], error["error"]) == ("cpu", self.WHY)
        assert "UNUSABLE_GPU" in error["hint"]
        assert not (folder / "result.json").exists()

    def test_a_gpu_that_is_hidden_is_nobodys_fault(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        main(folder)
        assert [message for message in self.told(capsys) if "warning" in message] == []


def test_a_framework_that_is_not_installed_is_named_with_what_adds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def device() -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setitem(models._MODULES, "fake", "tests.fake_cnn")
    monkeypatch.setattr(fake_cnn, "device", device)
    with pytest.raises(TrainingFailed, match="fake cannot be trained here: torch is not installed") as caught:
        ask_device("fake")
    assert caught.value.hint.startswith('`make install WITH="fastai keras"`')


def test_a_process_of_its_own_says_what_a_cnn_trains_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device_here("caffe")["error"].startswith("unknown model 'caffe'")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert device_here("keras")["error"] == "exit code 1"


def test_rows_are_an_array_that_reads_what_is_indexed(tmp_path: Path) -> None:
    pack = np.random.default_rng(1).integers(0, 256, (9, SIDE, SIDE, 3), dtype=np.uint8)
    np.save(tmp_path / "pack.npy", pack)
    order = np.array([8, 0, 3, 3])
    rows, whole = Rows(np.load(tmp_path / "pack.npy", mmap_mode="r"), order), pack[order]
    assert (rows.shape, rows.dtype, rows.ndim, rows.nbytes, len(rows)) == (
        whole.shape, whole.dtype, whole.ndim, whole.nbytes, len(whole),
    )  # fmt: skip
    for chosen in (slice(None), slice(1, 3), slice(2, 99), np.array([2, 0]), np.array([], np.int64)):
        read = rows[chosen]
        np.testing.assert_array_equal(read, whole[chosen])
        assert read.flags.owndata or read.base is not rows.pack
        assert read.flags.writeable, "torch warns of arrays that it could change and must not"


def test_memory_does_not_grow_with_the_number_of_cells(tmp_path: Path) -> None:
    """A gigabyte of cells, which are zeros that the disk does not store, and a process that reads a few batches."""
    pack = np.lib.format.open_memmap(tmp_path / "pack.npy", "w+", np.uint8, (90_000, 64, 64, 3))
    del pack
    code = f"""
import resource
import numpy as np
from tasks.models.rows import Rows
rows = Rows(np.load({str(tmp_path / "pack.npy")!r}, mmap_mode="r"), np.arange(90_000))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for start in range(0, 90_000, 9_000):
    rows[start : start + 64]
print(rows.nbytes // 2**20, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True
    )
    size, grown = map(int, done.stdout.split())
    assert size > 1000
    assert grown < 100
