"""Model files that tests write node by node, without a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from infra.scoring.model_file import INPUT, OUTPUT


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
