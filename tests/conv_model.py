"""A file like those of the CNNs, made without a training: convolutions with random weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from infra.scoring.model_file import INPUT, LOGIT, OUTPUT
from tests.model_files import assembled


def conv_model(side: int, *, channels: int = 24, layers: int = 4, seed: int = 1, output: str = OUTPUT) -> bytes:
    """Return a file whose sums are long enough for their order to show in the bits.

    It keeps the contract of a model file without members; of a member's file with ``output`` "logit".
    """
    from onnx import TensorProto, helper

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
    nodes.append(helper.make_node("Identity" if output == LOGIT else "Sigmoid", ["mean"], [output]))
    return assembled(nodes, constants, ["n", side, side, 3], told=output, name="conv")
