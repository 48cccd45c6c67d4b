"""A model file like those of the CNNs, made without a training: convolutions with weights by chance."""

from __future__ import annotations

from typing import Any

import numpy as np

from infra.scoring import INPUT, OUTPUT


def conv_model(side: int, *, channels: int = 24, layers: int = 4, seed: int = 1) -> bytes:
    """Return a model file that keeps the contract, whose sums are long enough for their order to show in the bits."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(seed)
    nodes: list[Any] = [
        helper.make_node("Cast", [INPUT], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["planes", "scale"], ["0"]),
    ]
    constants = {"scale": np.array(1 / 255, np.float32), "axes": np.array([1, 2, 3], np.int64)}
    width = 3
    for layer in range(layers):
        weights = rng.normal(0, (2 / (9 * width)) ** 0.5, (channels, width, 3, 3)).astype(np.float32)
        constants[f"w{layer}"] = weights
        nodes.append(helper.make_node("Conv", [str(layer), f"w{layer}"], [f"c{layer}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [str(layer + 1)]))
        width = channels
    nodes.append(helper.make_node("ReduceMean", [str(layers), "axes"], ["mean"], keepdims=0))
    nodes.append(helper.make_node("Sigmoid", ["mean"], [OUTPUT]))
    graph = helper.make_graph(
        nodes,
        "conv",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["n", side, side, 3])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data
