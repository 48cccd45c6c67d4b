"""The one scoring path: a model file over onnxruntime, the same for fastai, Keras and the champion.

It needs neither training framework and unpickles nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from validation.digest import sha256
from validation.errors import ModelFileInvalid

INPUT, OUTPUT = "images", "probability"
# Each cell is four images in the file. One of XResNet34 at 64 px takes 23.5 ms of a core in batches of 16 and of 64,
# 24.6 ms in batches of 4; 64 need 200 MB more than the model, 16 need 22. The scores are the same to the last bit.
BATCH = 16


class ModelFile:
    """A model file, checked against its contract and ready to score.

    Contract: one input ``images`` uint8 [n, side, side, 3] RGB, one output ``probability`` float32 [n].

    Raises:
        ModelFileInvalid: when the bytes are not the recorded ones, not an ONNX model, or break the contract.
    """

    def __init__(self, data: bytes, *, sha256_expected: str | None = None, threads: int = 0) -> None:
        import onnxruntime

        if sha256_expected is not None and sha256(data) != sha256_expected:
            raise ModelFileInvalid(
                f"the model file has SHA-256 {sha256(data)}, recorded is {sha256_expected}",
                "it was damaged or tampered with: roll back to another version",
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ModelFileInvalid(f"not a usable ONNX model: {str(error)[:200]}", "retrain, or roll back") from error
        self.side = self._checked_side()

    @classmethod
    def open(cls, path: Path) -> ModelFile:
        """Open a model file on this machine."""
        return cls(path.read_bytes())

    def score(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return the probability of Parasitized for uint8 images [n, side, side, 3], as float32 [n]."""
        if images.ndim != 4 or images.shape[1:] != (self.side, self.side, 3) or images.dtype != np.uint8:
            raise ModelFileInvalid(
                f"expected uint8 [n, {self.side}, {self.side}, 3], found {images.dtype} {list(images.shape)}",
                "create the model's input with validation.images.decode.to_square",
            )
        batches = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
        scores = [self._session.run([OUTPUT], {INPUT: np.ascontiguousarray(batch)})[0] for batch in batches]
        return np.concatenate(scores) if scores else np.empty(0, np.float32)

    def _checked_side(self) -> int:
        inputs = [(i.name, i.type, list(i.shape)) for i in self._session.get_inputs()]
        outputs = [(o.name, o.type, len(o.shape)) for o in self._session.get_outputs()]
        shape = inputs[0][2] if len(inputs) == 1 else []
        fits = (
            len(shape) == 4
            and inputs[0][:2] == (INPUT, "tensor(uint8)")
            and isinstance(shape[1], int)
            and shape[1:] == [shape[1], shape[1], 3]
            and outputs == [(OUTPUT, "tensor(float)", 1)]
        )
        if not fits:
            raise ModelFileInvalid(
                f"expected {INPUT} uint8 [n, side, side, 3] -> {OUTPUT} float32 [n], found {inputs} -> {outputs}",
                "the file was not written by this project's trainings",
            )
        return int(shape[1])
