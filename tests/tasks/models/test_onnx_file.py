"""The files of members and candidates: equal bytes for equal trainings, and what a candidate's columns are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from scipy.special import expit, logit

from infra.scoring.model_file import LOGIT, MemberFile, ModelFile
from tasks.models.onnx_file import combine, finish_onnx
from tests.conv_model import conv_model
from validation.errors import ModelFileInvalid

SIDE = 16
IMAGES = np.random.default_rng(1).integers(0, 256, (40, SIDE, SIDE, 3)).astype(np.uint8)


def members(*folds: int, **network: Any) -> list[tuple[int, bytes]]:
    return [(fold, conv_model(SIDE, seed=fold + 1, output=LOGIT, **network)) for fold in folds]


def two_branches(order: tuple[int, ...]) -> Any:
    """Return the graph of a member: the sum of all bytes by 0.04 and by 0.05, added up.

    ``order``: of its last four nodes; the other one of the branches first, the sum's attributes turned round too.
    """
    from onnx import TensorProto, helper, numpy_helper

    turn = 1 if order[1] == 1 else -1
    sums = helper.make_node("ReduceSum", ["cast", "axes"], ["sums"], keepdims=0, noop_with_empty_axes=0)
    attributes = sorted(sums.attribute, key=lambda attribute: attribute.name)[::turn]
    del sums.attribute[:]
    sums.attribute.extend(attributes)
    nodes = [
        sums,
        helper.make_node("Mul", ["sums", "fourth"], ["left"], name=f"branch_{turn}"),
        helper.make_node("Mul", ["sums", "fifth"], ["right"]),
        helper.make_node("Add", ["left", "right"], ["out"]),
    ]
    weights = {
        "axes": np.array([1, 2, 3]),
        "fourth": np.array([0.04], np.float32),
        "fifth": np.array([0.05], np.float32),
    }
    graph = helper.make_graph(
        [helper.make_node("Cast", ["in"], ["cast"], to=TensorProto.FLOAT), *(nodes[index] for index in order)],
        "graph",
        [helper.make_tensor_value_info("in", TensorProto.UINT8, ["n", 2, 2, 3])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_the_same_graph_in_another_order_is_the_same_file(tmp_path: Path) -> None:
    files = []
    for number, order in enumerate([(0, 1, 2, 3), (0, 2, 1, 3)]):
        finish_onnx(two_branches(order), tmp_path / f"{number}.onnx")
        files.append((tmp_path / f"{number}.onnx").read_bytes())
    assert files[0] == files[1]
    image = np.full((1, 2, 2, 3), 3, np.uint8)
    assert MemberFile.open(tmp_path / "0.onnx").score_logits(image) == pytest.approx([0.09 * 3 * 12])


def test_large_weights_are_stored_in_half_precision_and_computed_with_as_floats(tmp_path: Path) -> None:
    plain = conv_model(SIDE, output=LOGIT)
    finish_onnx(onnx.load_model_from_string(plain), tmp_path / "member.onnx")
    data = (tmp_path / "member.onnx").read_bytes()
    assert len(data) < 0.6 * len(plain)
    exact, found = MemberFile(plain).score_logits(IMAGES), MemberFile(data).score_logits(IMAGES)
    assert 0 < np.abs(expit(found) - expit(exact)).max() < 1e-3
    casts = [node for node in onnx.load_model_from_string(data).graph.node if node.name.endswith("/cast")]
    assert len(casts) == 3, "the first convolution is small"


def test_weights_too_large_for_half_precision_stay_floats(tmp_path: Path) -> None:
    model = onnx.load_model_from_string(conv_model(SIDE, output=LOGIT))
    weight = next(weight for weight in model.graph.initializer if weight.name == "w1")
    huge = onnx.numpy_helper.to_array(weight).copy()
    huge[0] *= 1e6
    weight.CopyFrom(onnx.numpy_helper.from_array(huge, "w1"))
    exact = MemberFile(model.SerializeToString()).score_logits(IMAGES)
    finish_onnx(model, tmp_path / "member.onnx")
    np.testing.assert_allclose(MemberFile.open(tmp_path / "member.onnx").score_logits(IMAGES), exact, rtol=1e-2)


def test_a_candidates_probability_is_the_sigmoid_of_its_members_mean_logit() -> None:
    files = members(0, 1, 2)
    logits = np.stack([MemberFile(data).score_logits(IMAGES) for _, data in files], axis=1)
    model = ModelFile(combine(files))
    assert model.folds == (0, 1, 2)
    np.testing.assert_allclose(model.score_members(IMAGES), expit(logits), atol=1e-6)
    np.testing.assert_allclose(model.score(IMAGES), expit(logits.mean(axis=1)), atol=1e-6)
    assert np.abs(model.score(IMAGES) - expit(logits).mean(axis=1)).max() > 1e-6, "not the mean of probabilities"


def test_one_member_is_a_candidate_too() -> None:
    ((fold, data),) = files = members(3)
    model = ModelFile(combine(files))
    assert model.folds == (fold,)
    np.testing.assert_allclose(logit(model.score(IMAGES)), MemberFile(data).score_logits(IMAGES), atol=1e-4)
    np.testing.assert_array_equal(model.score_members(IMAGES)[:, 0], model.score(IMAGES))


def test_the_same_members_give_the_same_bytes() -> None:
    assert combine(members(0, 1)) == combine(members(0, 1))
    assert combine(members(0, 1)) != combine(members(1, 0))


@pytest.mark.parametrize(
    "files",
    [
        [],
        [*members(0), *members(0)],
        [*members(0), (1, conv_model(2 * SIDE, output=LOGIT))],
        [*members(0), (1, conv_model(SIDE))],
    ],
    ids=["none", "a fold twice", "another side", "no member"],
)
def test_what_is_no_candidate_is_refused(files: list[tuple[int, bytes]]) -> None:
    with pytest.raises(ModelFileInvalid, match=r"members of one candidate|the file of a member"):
        combine(files)
