"""Model files that tests write node by node, without a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from infra.scoring.model_file import INPUT, LOGIT, OUTPUT

RED, GREEN = 0, 1
SIDE = 16


def assembled(
    nodes: Sequence[Any],
    constants: Mapping[str, Any],
    shape: Sequence[Any],
    *,
    given: tuple[str, int] | None = None,
    told: str = OUTPUT,
    name: str = "malaria-cell",
) -> bytes:
    """Return a checked file: by default from uint8 ``images`` of ``shape`` to float32 ``probability`` [n]."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    input_name, input_type = given or (INPUT, TensorProto.UINT8)
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(input_name, input_type, shape)],
        [helper.make_tensor_value_info(told, TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(value, constant) for constant, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data


def endless_network() -> bytes:
    """Return a model file that opens, and whose loop never ends."""
    from onnx import TensorProto, helper

    def value(name: str, kind: int, shape: list[str]) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["x"], ["y"])],
        "again",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("x", TensorProto.FLOAT, ["n"])],
        [value("on", TensorProto.BOOL, []), value("y", TensorProto.FLOAT, ["n"])],
    )
    nodes = [
        helper.make_node("Cast", [INPUT], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "over"], ["means"], keepdims=0),
        helper.make_node("Loop", ["", "true", "means"], [OUTPUT], body=body),
    ]
    constants = {"over": np.array([1, 2, 3], np.int64), "true": np.array(True)}
    return assembled(nodes, constants, ["n", SIDE, SIDE, 3])


def single_network(
    channel: int = GREEN, *, side: int = SIDE, centre: float = 105.0, output: str = OUTPUT, **contract: Any
) -> bytes:
    """Return a model file without members: the sigmoid of an image's mean in one colour channel.

    A member's file with ``output`` "logit". ``contract`` breaks it: ``input_name``, ``output_name``, ``input_type``,
    ``shape``.
    """
    from onnx import TensorProto, helper

    given, told = contract.get("input_name", INPUT), contract.get("output_name", output)
    constants = {
        "over": np.array([1, 2], np.int64),
        "channel": np.array(channel, np.int64),
        "centre": np.array(centre, np.float32),
        "sharpness": np.array(0.1, np.float32),
    }
    nodes = [
        helper.make_node("Cast", [given], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "over"], ["means"], keepdims=0),
        helper.make_node("Gather", ["means", "channel"], ["mean"], axis=1),
        helper.make_node("Sub", ["mean", "centre"], ["apart"]),
        helper.make_node("Mul", ["apart", "sharpness"], ["sharp"]),
        helper.make_node("Identity" if output == LOGIT else "Sigmoid", ["sharp"], [told]),
    ]
    return assembled(
        nodes,
        constants,
        contract.get("shape", ["n", side, side, 3]),
        given=(given, contract.get("input_type", TensorProto.UINT8)),
        told=told,
    )
