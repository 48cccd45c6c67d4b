"""What benchmarks count and compare: a wrong figure there would be believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ablation import UNCHANGED, job_of, table
from benchmarks.ablation_changes import CHANGES
from benchmarks.roofline import forward_flops, training_flops
from tasks.models.fastai import cnn as fastai_xresnet
from tests.conv_model import conv_model

# Two convolutions of 3 x 3 over 8 x 8 pixels: 3 to 24 channels, 24 to 24; a multiplication and an addition each.
FORWARD = 2 * 8 * 8 * 9 * (3 * 24 + 24 * 24)


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(conv_model(8, channels=24, layers=2))
    return path


def test_the_operations_of_a_forward_pass_are_those_of_its_convolutions(model_file: Path) -> None:
    assert forward_flops(model_file) == FORWARD


def test_a_node_without_inputs_counts_nothing(model_file: Path) -> None:
    """torch's exporter writes constants as such nodes."""
    import onnx

    model = onnx.load(model_file)
    constant = onnx.helper.make_tensor("c", onnx.TensorProto.FLOAT, [1], [0.5])
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["unused"], value=constant))
    onnx.save(model, model_file)
    assert forward_flops(model_file) == FORWARD


def test_a_training_counts_small_cells_validation_and_one_view(model_file: Path) -> None:
    recipe = fastai_xresnet.DefaultRecipe(small_share=0.4, small_size=0.5, views=4)
    # Of ten epochs four see a quarter of the pixels.
    assert training_flops(model_file, recipe, 10, 100, 30) == pytest.approx(FORWARD / 4 * (300 * 7 + 30 * 10))


def test_a_change_is_set_against_the_recipe_in_the_folds_that_both_have(tmp_path: Path) -> None:
    def put(name: str, fold: int, loss: float) -> None:
        path = job_of(name, "keras", fold, {}).path(tmp_path / name)
        path.parent.mkdir(parents=True, exist_ok=True)
        metrics = {"log_loss": loss, "auc": 0.9, "accuracy": 0.9, "sensitivity": 0.9}
        path.write_text(json.dumps({"cpu_seconds": 10 * loss, "metrics": metrics}))

    for fold, loss in enumerate((0.1, 0.2, 0.9)):
        put(UNCHANGED, fold, loss)
    put("seed", 0, 0.3)
    put("smoothing", 0, 0.4)
    put("smoothing", 1, 0.1)
    _, unchanged, seed, smoothing = table(
        tmp_path, [UNCHANGED, "seed", "smoothing", "cutout"], "keras", [0, 1, 2], {}
    ).splitlines()  # a change that was not measured has no row
    assert "0,1,2" in unchanged
    assert "0.4000" in unchanged
    assert "+0.2000 (+0.2000 to +0.2000)" in seed
    assert smoothing.startswith(CHANGES["smoothing"].says)
    assert "0,1 " in smoothing
    assert "+0.0500 (-0.1000 to +0.2000)" in smoothing, "0.4 against the mean of two seeds, 0.1 against one"


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_another_training_than_the_recipe(name: str) -> None:
    change = CHANGES[name]
    for model in change.models:
        unchanged: Any = job_of(UNCHANGED, model, 0, {})
        assert change.patch or job_of(name, model, 0, {}) != unchanged
