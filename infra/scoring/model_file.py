"""The one scoring path: a model file over onnxruntime, the same for fastai, Keras and the champion.

It needs neither training framework and unpickles nothing.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

from infra.processes.memory import release_memory
from validation.digest import sha256
from validation.errors import ModelFileInvalid

INPUT, OUTPUT, MEMBERS, LOGIT = "images", "probability", "members", "logit"
# The metadata property with the fold of each column of ``members``.
FOLDS = "folds"
# One image of XResNet34 at 64 px takes 23.5 ms of a core in batches of 16 and of 64, 24.6 ms in batches of 4; 64 need
# 200 MB more than the model, 16 need 22. The scores are the same to the last bit.
BATCH = 16
# By how much a probability may differ from the sigmoid of its members' mean logit.
TOLERANCE = 1e-3

# A batch takes half a second; a network with a loop that does not end would take for ever.
BATCH_SECONDS = 300.0
FOREIGN = "the file was not written by this project's trainings"

Scores = npt.NDArray[np.float32]


class Value(NamedTuple):
    """An input or output of a graph: its ONNX type, and its sides; a text is a side of any length."""

    name: str
    type: str
    shape: tuple[int | str, ...]


class Interface(NamedTuple):
    """What a graph says of itself."""

    inputs: list[Value]
    outputs: list[Value]
    metadata: dict[str, str]


def column_of(number: int) -> str:
    """Return what the names in the network of a column of ``members`` begin with."""
    return f"member{number}/"


class _Session(ABC):
    """An ONNX file with the input ``images`` uint8 [n, side, side, 3], opened by onnxruntime."""

    expected = ""

    def __init__(self, data: bytes, *, sha256_expected: str | None = None, threads: int = 0) -> None:
        if sha256_expected is not None and sha256(data) != sha256_expected:
            raise ModelFileInvalid(
                f"the model file has SHA-256 {sha256(data)}, recorded is {sha256_expected}",
                "it was damaged or tampered with: roll back to another version",
            )
        self._data, self._threads = data, threads
        self._interface = _interface(data)
        self.side = self._checked_side()

    @cached_property
    def _session(self) -> Any:
        """Opened when something is scored: that of five XResNet34 takes half a gigabyte."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads or len(os.sched_getaffinity(0))
        options.log_severity_level = 3
        try:
            return onnxruntime.InferenceSession(self._data, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ModelFileInvalid(f"not a usable ONNX model: {str(error)[:200]}", "retrain, or roll back") from error
        finally:
            release_memory()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a file on this machine."""
        return cls(path.read_bytes())

    @abstractmethod
    def _fits(self, outputs: list[Value]) -> bool: ...

    def _checked_side(self) -> int:
        inputs, outputs, _ = self._interface
        shape = inputs[0].shape if len(inputs) == 1 else ()
        fits = (
            len(shape) == 4
            and inputs[0][:2] == (INPUT, "UINT8")
            and isinstance(shape[1], int)
            and shape[1:] == (shape[1], shape[1], 3)
            and self._fits(outputs)
        )
        if not fits:
            raise ModelFileInvalid(
                f"expected {INPUT} uint8 [n, side, side, 3] -> {self.expected}, found {inputs} -> {outputs}",
                FOREIGN,
            )
        return int(shape[1])

    def _check(self, images: Any) -> None:
        if images.ndim != 4 or images.shape[1:] != (self.side, self.side, 3) or images.dtype != np.uint8:
            raise ModelFileInvalid(
                f"expected uint8 [n, {self.side}, {self.side}, 3], found {images.dtype} {list(images.shape)}",
                "create the model's input with validation.images.decode.to_square",
            )

    def _run(self, output: str, images: Any, into: Scores) -> Scores:
        """Fill ``into`` with the scores of images that can be sliced; only a batch of them is in memory at a time."""
        self._check(images)
        for rows in _batches(len(images)):
            into[rows] = self._scored(output, np.ascontiguousarray(images[rows]))
        return into

    def _scored(self, output: str, batch: npt.NDArray[np.uint8]) -> Any:
        """Return the scores of a batch, within ``BATCH_SECONDS``: onnxruntime looks at ``terminate`` at every node."""
        import onnxruntime

        session, options = self._session, onnxruntime.RunOptions()
        options.log_severity_level = 4  # the error says it
        clock = threading.Timer(BATCH_SECONDS, setattr, (options, "terminate", True))
        clock.daemon = True
        clock.start()
        try:
            return session.run([output], {INPUT: batch}, options)[0]
        except Exception as error:  # any error of onnxruntime for a graph that loads and does not run
            why = f"{len(batch)} images took over {BATCH_SECONDS:g} s" if options.terminate else str(error)[:200]
            raise ModelFileInvalid(f"the model does not run: {why}", "retrain, or roll back") from error
        finally:
            clock.cancel()


class ModelFile(_Session):
    """A candidate's model file, checked against its contract and ready to score.

    Contract: one input ``images`` uint8 [n, side, side, 3] RGB; outputs ``probability`` float32 [n], and ``members``
    float32 [n, M], the probability by each member, whose folds the metadata property ``folds`` names. A file without
    members (of version 0.1, or of others) has only ``probability``. Images may be any array that can be sliced, such as
    a memory map: memory does not grow with their number.

    Attributes: ``side`` in pixels; ``folds``, the fold of each column of ``members``, empty without members.

    Raises:
        ModelFileInvalid: when the bytes are not the recorded ones, not an ONNX model, or break the contract.
    """

    expected = f"{OUTPUT} float32 [n], or {OUTPUT} and {MEMBERS} float32 [n, M]"

    def __init__(self, data: bytes, *, sha256_expected: str | None = None, threads: int = 0) -> None:
        super().__init__(data, sha256_expected=sha256_expected, threads=threads)
        self.folds = self._checked_folds()

    def score(self, images: Any) -> Scores:
        """Return the probability of Parasitized for uint8 images [n, side, side, 3], as float32 [n]."""
        return self._run(OUTPUT, images, np.empty(len(images), np.float32))

    def score_members(self, images: Any) -> Scores:
        """Return each member's probability for uint8 images [n, side, side, 3], as float32 [n, M].

        Raises:
            ModelFileInvalid: when the file has no members.
        """
        if not self.folds:
            raise ModelFileInvalid("the model file has no members", "it is of a version before there were members")
        return self._run(MEMBERS, images, np.empty((len(images), len(self.folds)), np.float32))

    def score_by_fold(self, images: Any, folds: npt.NDArray[np.integer]) -> Scores:
        """Return the probability of each image by the column of its own fold, ``folds`` int [n], as float32 [n].

        Only that member is computed, a member after the other. The scores are those of ``score_members`` to the last
        bit.

        Raises:
            ModelFileInvalid: when a fold has no column.
        """
        self._check(images)
        scores, graph = np.empty(len(images), np.float32), _parsed(self._data)
        if missing := sorted(set(np.unique(folds).tolist()) - set(self.folds)):
            raise ModelFileInvalid(
                f"the model file has no column for fold {missing}, it has {list(self.folds)}", FOREIGN
            )
        for column, fold in enumerate(self.folds):
            rows = np.flatnonzero(folds == fold)
            if not len(rows):
                continue
            member = ModelFile(_column(graph, column), threads=self._threads)
            for batch in _batches(len(rows)):
                scores[rows[batch]] = member.score(images[rows[batch]])
        return scores

    def check_members(self) -> None:
        """Check that ``probability`` is the mean of ``members``, on a black image and a ramp of all grey levels.

        Raises:
            ModelFileInvalid: when it is not.
        """
        if not self.folds:
            return
        images = np.zeros((2, self.side, self.side, 3), np.uint8)
        images[1] = np.linspace(0, 255, self.side).astype(np.uint8)[:, np.newaxis]
        found, members = self.score(images), self.score_members(images).astype(np.float64)
        # A member that is certain, in float32, has any logit from here on.
        certain = members > 1 - 1e-6
        lowest = logit(np.clip(members, 1e-300, 1 - 1e-6)).mean(axis=1)
        highest = np.where(certain.any(axis=1), np.inf, lowest)
        is_mean = (found >= expit(lowest) - TOLERANCE) & (found <= expit(highest) + TOLERANCE)
        if not is_mean.all():
            raise ModelFileInvalid(
                f"{OUTPUT} is not the mean of {MEMBERS}: {found.tolist()} from {members.tolist()}",
                FOREIGN,
            )

    def _fits(self, outputs: list[Value]) -> bool:
        return _ranks(outputs) in ([(OUTPUT, "FLOAT", 1)], [(OUTPUT, "FLOAT", 1), (MEMBERS, "FLOAT", 2)])

    def _checked_folds(self) -> tuple[int, ...]:
        _, outputs, metadata = self._interface
        columns = outputs[1].shape[1] if len(outputs) > 1 else 0
        text = metadata.get(FOLDS, "")
        try:
            folds = tuple(int(fold) for fold in text.split(",")) if text else ()
        except ValueError:
            folds = (-1,)
        if len(folds) != columns or len(set(folds)) != columns or min(folds, default=0) < 0:
            raise ModelFileInvalid(
                f"the metadata property {FOLDS} is {text!r}, expected the folds of {columns} columns",
                FOREIGN,
            )
        return folds


class MemberFile(_Session):
    """A member's file: ``images`` uint8 [n, side, side, 3] -> ``logit`` float32 [n], calibrated.

    Raises:
        ModelFileInvalid: as for ``ModelFile``.
    """

    expected = f"{LOGIT} float32 [n]"

    def score_logits(self, images: Any) -> Scores:
        """Return the calibrated logit of Parasitized for uint8 images [n, side, side, 3], as float32 [n]."""
        return self._run(LOGIT, images, np.empty(len(images), np.float32))

    def _fits(self, outputs: list[Value]) -> bool:
        return _ranks(outputs) == [(LOGIT, "FLOAT", 1)]


def _parsed(data: bytes) -> Any:
    import onnx

    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # of protobuf, which has no types
        raise ModelFileInvalid(f"not a usable ONNX model: {str(error)[:200]}", "retrain, or roll back") from error
    if not model.graph.node:  # no bytes are a message too
        raise ModelFileInvalid("not a usable ONNX model: it has no graph", "retrain, or roll back")
    return model


def _interface(data: bytes) -> Interface:
    """Read what a file says of its graph, without opening a session.

    Raises:
        ModelFileInvalid: when the bytes are no ONNX model.
    """
    import onnx

    model = _parsed(data)
    weights = {weight.name for weight in model.graph.initializer}

    def described(values: Any) -> list[Value]:
        return [
            Value(
                value.name,
                onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type),
                tuple(
                    dim.dim_value if dim.HasField("dim_value") else dim.dim_param
                    for dim in value.type.tensor_type.shape.dim
                ),
            )
            for value in values
            if value.name not in weights
        ]

    metadata = {entry.key: entry.value for entry in model.metadata_props}
    return Interface(described(model.graph.input), described(model.graph.output), metadata)


def _ranks(values: list[Value]) -> list[tuple[str, str, int]]:
    return [(value.name, value.type, len(value.shape)) for value in values]


def _batches(count: int) -> Iterator[slice]:
    return (slice(start, start + BATCH) for start in range(0, count, BATCH))


def _column(model: Any, column: int) -> bytes:
    """Return the network of one column of ``members`` as a file of its own, with the output ``probability``."""
    import onnx
    from onnx import TensorProto, helper

    graph, prefix = model.graph, column_of(column)
    kept = onnx.GraphProto(name=graph.name, input=graph.input)
    kept.node.extend(node for node in graph.node if node.name.startswith(prefix))
    kept.initializer.extend(weight for weight in graph.initializer if weight.name.startswith(prefix))
    kept.node.append(helper.make_node("Identity", [prefix + OUTPUT], [OUTPUT]))
    kept.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["n"]))
    alone = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, graph=kept)
    found: bytes = alone.SerializeToString()
    return found
