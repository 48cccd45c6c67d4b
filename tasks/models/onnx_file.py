"""The ONNX files: a member's, and a candidate's, which combines its members. Their contract: infra/scoring/model_file.

Equal trainings give equal bytes. Imports ONNX only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infra.processes.memory import release_memory
from infra.scoring.model_file import FOLDS, INPUT, LOGIT, MEMBERS, OUTPUT, column_of
from validation.errors import ModelFileInvalid

__all__ = ["combine", "finish_onnx"]

# Larger weights are stored in half precision: five XResNet34 take 213 MB instead of 426. onnxruntime makes floats of
# them when it opens the file; probabilities change by 0.0003 at most (docs/training.md).
LARGE_BYTES = 4096
_AGAIN = "run the night again"


def finish_onnx(model: Any, path: Path) -> None:
    """Normalise an exported graph ``images`` -> ``logit``, check it, and write it as one self-contained file.

    Exporters leave source paths and names from their process in the file; without them the same training gives the
    same bytes.
    """
    import onnx

    graph = model.graph
    _normalise_names(graph)
    _store_large_weights_as_halves(graph)
    graph.name = "malaria-cell"
    model.doc_string = graph.doc_string = ""
    del model.metadata_props[:], graph.metadata_props[:], graph.value_info[:]
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*graph.input, *graph.output):
        del value.metadata_props[:]
        value.type.tensor_type.shape.dim[0].ClearField("dim_value")
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    onnx.checker.check_model(model, full_check=True)
    beside = path.with_name(f".{path.name}.part")
    beside.write_bytes(model.SerializeToString(deterministic=True))
    beside.replace(path)


def combine(files: Sequence[tuple[int, bytes]]) -> bytes:
    """Return a candidate's file from the fold and the file of each member, in the order of its columns.

    It maps ``images`` uint8 [n, side, side, 3] to ``probability`` float32 [n], the sigmoid of the mean of the members'
    logits, and ``members`` float32 [n, M], the sigmoid of each. Its property ``folds`` names the columns. The names in
    the network of column 0 begin with ``member0/``, and so on.

    Raises:
        ModelFileInvalid: when there are no files, a fold occurs twice, or the files are not members of one side.
    """
    import onnx
    from onnx import TensorProto, helper

    folds = [fold for fold, _ in files]
    model, interfaces = onnx.ModelProto(graph=onnx.GraphProto(name="malaria-cell")), []
    graph = model.graph
    # One at a time and without copies: five XResNet34 took 1.3 GB, now 0.6.
    for column, (_, file) in enumerate(files):
        try:
            member = onnx.load_model_from_string(file)
        except Exception as error:  # of protobuf, which has no types
            raise ModelFileInvalid(f"a member's file is not a usable ONNX model: {error}", _AGAIN) from error
        interfaces.append(_interface(member))
        _add_member(graph, member.graph, column)
    if len(set(interfaces)) != 1 or len(set(folds)) != len(folds):
        kinds = len(set(interfaces))
        raise ModelFileInvalid(f"folds {folds} with {kinds} interfaces are not the members of one candidate", _AGAIN)
    alone = onnx.ModelProto.FromString(interfaces[0])
    graph.input.extend(alone.graph.input)
    axis = "columns"
    graph.initializer.append(helper.make_tensor(axis, TensorProto.INT64, [1], [1]))
    for what, joined in ((LOGIT, "logits"), (OUTPUT, MEMBERS)):
        parts = [f"{column_of(column)}{what}" for column in range(len(folds))]
        graph.node.extend(helper.make_node("Unsqueeze", [part, axis], [f"{part}/column"]) for part in parts)
        graph.node.append(helper.make_node("Concat", [f"{part}/column" for part in parts], [joined], axis=1))
    graph.node.append(helper.make_node("ReduceMean", ["logits", axis], ["mean"], keepdims=0))
    graph.node.append(helper.make_node("Sigmoid", ["mean"], [OUTPUT]))
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["n"]))
    graph.output.append(helper.make_tensor_value_info(MEMBERS, TensorProto.FLOAT, ["n", len(folds)]))
    model.ir_version = alone.ir_version
    model.opset_import.extend(alone.opset_import)
    helper.set_model_props(model, {FOLDS: ",".join(map(str, folds))})
    data: bytes = model.SerializeToString(deterministic=True)
    del model, graph, member
    onnx.checker.check_model(data, full_check=True)
    release_memory()
    return data


def _interface(model: Any) -> bytes:
    """Return the side, names and operators of a member, which all of a candidate share."""
    import onnx

    graph = onnx.GraphProto(input=model.graph.input, output=model.graph.output)
    names = [value.name for value in (*graph.input, *graph.output)]
    if names != [INPUT, LOGIT]:
        raise ModelFileInvalid(f"expected the file of a member, {INPUT} -> {LOGIT}, found {names}", _AGAIN)
    alone = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, graph=graph)
    data: bytes = alone.SerializeToString(deterministic=True)
    return data


def _add_member(graph: Any, member: Any, column: int) -> None:
    """Add a member's network under names of its own, with its probability."""
    from onnx import helper

    prefix = column_of(column)

    def renamed(name: str) -> str:
        return name if name in ("", INPUT) else prefix + name

    for number, node in enumerate(member.node):
        added = graph.node.add()
        added.CopyFrom(node)
        added.name = f"{prefix}node{number}"
        added.input[:] = map(renamed, node.input)
        added.output[:] = map(renamed, node.output)
    for weight in member.initializer:
        added = graph.initializer.add()
        added.CopyFrom(weight)
        added.name = prefix + weight.name
    # A column is computed as it is in a session of its own, cells in a row, to the last bit.
    graph.node.append(helper.make_node("Sigmoid", [prefix + LOGIT], [prefix + OUTPUT], name=prefix + OUTPUT))


def _store_large_weights_as_halves(graph: Any) -> None:
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    highest = float(np.finfo(np.float16).max)
    for weight in graph.initializer:
        array = numpy_helper.to_array(weight)
        if array.dtype != np.float32 or array.nbytes < LARGE_BYTES or np.abs(array).max() > highest:
            continue
        name = weight.name
        weight.CopyFrom(numpy_helper.from_array(array.astype(np.float16), f"{name}/half"))
        casts.append(helper.make_node("Cast", [f"{name}/half"], [name], name=f"{name}/cast", to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _normalise_names(graph: Any) -> None:
    """Order nodes from the output's inputs on, name tensors by their place, order weights by their use.

    The order and the names that tf2onnx gives to branches and attributes depend on how its optimisers walk the graph:
    equal trainings gave unequal files.
    """
    nodes = _in_order(graph)
    del graph.node[:]
    graph.node.extend(nodes)
    names: dict[str, str] = {"": "", graph.input[0].name: INPUT, graph.output[0].name: LOGIT}
    graph.input[0].name, graph.output[0].name = INPUT, LOGIT
    for index, node in enumerate(graph.node):
        node.name = f"node{index}"
        for name in (*node.input, *node.output):
            names.setdefault(name, f"tensor{len(names)}")
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
    places = {name: place for place, name in enumerate(names)}
    used = [weight for weight in graph.initializer if weight.name in places]
    weights = []
    for weight in sorted(used, key=lambda weight: places[weight.name]):
        copy = type(weight).FromString(weight.SerializeToString())
        copy.name = names[weight.name]
        weights.append(copy)
    del graph.initializer[:]
    graph.initializer.extend(weights)


def _in_order(graph: Any) -> list[Any]:
    """Return copies of the nodes in topological order, first input first."""
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output}
    order: dict[int, None] = {}
    waiting = [(makers[output.name], False) for output in reversed(graph.output)]
    while waiting:
        index, is_ready = waiting.pop()
        if is_ready:
            order[index] = None
        elif index not in order:
            waiting.append((index, True))
            waiting += [(makers[name], False) for name in reversed(graph.node[index].input) if name in makers]
    nodes = []
    for index in order:
        node = type(graph.node[index]).FromString(graph.node[index].SerializeToString())
        node.attribute.sort(key=lambda attribute: attribute.name)
        nodes.append(node)
    return nodes
