"""The one scoring path: what a model file must be, and that it scores the same in any company."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.scoring.model_file import BATCH, ModelFile
from tests.builders import GREEN, SIDE, channel_model
from validation.digest import sha256
from validation.errors import ModelFileInvalid


def images(count: int, seed: int = 1) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3)).astype(np.uint8)


def test_scores_are_what_the_graph_says() -> None:
    cells = images(10)
    expected = 1 / (1 + np.exp(-0.1 * (cells[..., GREEN].astype(np.float64).mean(axis=(1, 2)) - 105)))
    scores = ModelFile(channel_model()).score(cells)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_more_cells_than_a_batch_come_back_in_order() -> None:
    model, cells = ModelFile(channel_model()), images(2 * BATCH + 3)
    scores = model.score(cells)
    assert scores.shape == (2 * BATCH + 3,)
    np.testing.assert_array_equal(scores, np.concatenate([model.score(cells[:BATCH]), model.score(cells[BATCH:])]))
    np.testing.assert_allclose(scores, [float(model.score(cell[np.newaxis])[0]) for cell in cells], atol=1e-6)


def test_no_cells_have_no_scores() -> None:
    scores = ModelFile(channel_model()).score(images(0))
    assert scores.shape == (0,)
    assert scores.dtype == np.float32


def test_a_view_of_a_memory_map_is_scored_like_a_copy(tmp_path: Path) -> None:
    np.save(tmp_path / "cells.npy", images(9))
    mapped = np.load(tmp_path / "cells.npy", mmap_mode="r")[::2]
    model = ModelFile(channel_model())
    np.testing.assert_array_equal(model.score(mapped), model.score(mapped.copy()))


@pytest.mark.parametrize(
    "wrong",
    [
        images(2)[:, :8],
        images(2)[..., :1],
        images(2)[0],
        images(2).astype(np.float32),
        np.zeros((2, 3, SIDE, SIDE), np.uint8),
    ],
)
def test_other_arrays_are_refused_with_what_was_expected(wrong: Any) -> None:
    with pytest.raises(ModelFileInvalid, match=rf"expected uint8 \[n, {SIDE}, {SIDE}, 3\], found {wrong.dtype}"):
        ModelFile(channel_model()).score(wrong)


def test_other_bytes_than_recorded_are_refused() -> None:
    model = channel_model()
    assert ModelFile(model, sha256_expected=sha256(model)).side == SIDE
    with pytest.raises(ModelFileInvalid, match="recorded is") as caught:
        ModelFile(channel_model(centre=99), sha256_expected=sha256(model))
    assert "roll back" in caught.value.hint


@pytest.mark.parametrize("data", [b"", b"not a model", channel_model()[:-50]])
def test_what_is_no_model_is_refused(data: bytes) -> None:
    with pytest.raises(ModelFileInvalid, match="not a usable ONNX model"):
        ModelFile(data)


@pytest.mark.parametrize(
    "contract",
    [
        {"input_name": "x"},
        {"output_name": "y"},
        {"input_type": 1},  # float
        {"shape": ["n", SIDE, 2 * SIDE, 3]},
        {"shape": ["n", "side", "side", 3]},
        {"shape": ["n", SIDE, SIDE, 4]},
    ],
)
def test_a_model_that_breaks_the_contract_is_refused(contract: dict[str, Any]) -> None:
    with pytest.raises(ModelFileInvalid, match=r"expected images uint8 \[n, side, side, 3\]"):
        ModelFile(channel_model(**contract))


def test_a_model_file_is_opened_from_a_path(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(channel_model(side=32))
    assert ModelFile.open(tmp_path / "model.onnx").side == 32


def test_scoring_loads_neither_framework(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(channel_model())
    code = (
        "import sys, numpy as np; from pathlib import Path; from infra.scoring.model_file import ModelFile; "
        f"ModelFile.open(Path({str(tmp_path / 'model.onnx')!r})).score(np.zeros((1, {SIDE}, {SIDE}, 3), np.uint8)); "
        "print([n for n in ('torch', 'fastai', 'tensorflow', 'keras', 'mlflow', 'prefect') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
