"""Roofline: what share of a device's arithmetic a training of each CNN uses.

The roof is what a large matrix product or convolution reaches on the same device, in the same process, in the precision
that the CNN is trained in. The work is counted in the model file: the convolutions and products of a forward pass,
three times for a training cell (forward, and the gradients of what goes in and of the weights), once for a tuning
cell.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tasks.models import Recipe

__all__ = ["forward_flops", "peak_flops", "training_flops"]

COUNTED = ("Conv", "Gemm", "MatMul")
# The side of the matrices, and the cells of the convolution, of 256 channels at 16 x 16.
SIDES = {"cpu": (2048, 16), "cuda": (8192, 1024)}
CHANNELS, PIXELS = 256, 16
ROUNDS = 10


def forward_flops(onnx_file: Path) -> float:
    """Return the floating-point operations that a model file takes for a cell, a multiplication and an addition each.

    All its views together. Convolutions and matrix products only: the rest is less than a hundredth.
    """
    import onnx
    import onnxruntime

    model = onnx.load(onnx_file)
    nodes = [node for node in model.graph.node if node.op_type in COUNTED]
    model.graph.output.extend(onnx.ValueInfoProto(name=node.output[0]) for node in nodes)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    cells = session.get_inputs()[0]
    found = session.run([node.output[0] for node in nodes], {cells.name: np.zeros((1, *cells.shape[1:]), np.uint8)})
    weights = {weight.name: list(weight.dims) for weight in model.graph.initializer}
    # Large ones are stored in half precision.
    weights |= {
        node.output[0]: weights[name] for node in model.graph.node for name in node.input[:1] if name in weights
    }
    total = 0.0
    for node, output in zip(nodes, found, strict=True):
        shape = weights[node.input[1]]
        # A convolution's weights are [out, in, height, width]; a product's hold out x in, whichever way.
        outputs = shape[0] if node.op_type == "Conv" else output.shape[-1]
        total += 2.0 * output.size * np.prod(shape) / outputs
    return total


def training_flops(onnx_file: Path, recipe: Recipe, epochs: int, train: int, tuning: int) -> float:
    """Return the operations of a whole training: so many epochs over so many training and tuning cells."""
    flops = forward_flops(onnx_file) / recipe.views
    small = round(epochs * getattr(recipe, "small_share", 0.0))
    # Convolutions cost as much as they have pixels.
    shown = (epochs - small) + small * getattr(recipe, "small_size", 1.0) ** 2
    return flops * (3 * train * shown + tuning * epochs)


def peak_flops(framework: str, device: str) -> float:
    """Return the operations a second of the faster of a large matrix product and a large convolution, the best of ten.

    Of both, because a library's matrix product may be the slower one (MKL's on AMD).
    """
    kind = "cuda" if "cuda" in device else "cpu"
    side, cells = SIDES[kind]
    multiply, convolve = (_torch if framework == "fastai" else _tensorflow)(side, cells, kind)
    work = {multiply: 2 * side**3, convolve: 2 * cells * PIXELS**2 * CHANNELS**2 * 9}
    return max(operations / _shortest(run) for run, operations in work.items())


def _shortest(run: Callable[[], None]) -> float:
    run()
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _torch(side: int, cells: int, kind: str) -> tuple[Callable[[], None], Callable[[], None]]:
    import torch

    about: dict[str, Any] = {"dtype": torch.float16 if kind == "cuda" else torch.float32, "device": kind}
    layout = torch.channels_last if kind == "cuda" else torch.contiguous_format
    matrix = torch.ones(side, side, **about)
    images = torch.ones(cells, CHANNELS, PIXELS, PIXELS, **about).to(memory_format=layout)
    weights = torch.ones(CHANNELS, CHANNELS, 3, 3, **about).to(memory_format=layout)

    # Read back: a GPU answers before it has done anything.
    def multiply() -> None:
        float((matrix @ matrix)[0, 0])

    def convolve() -> None:
        float(torch.nn.functional.conv2d(images, weights, padding=1)[0, 0, 0, 0])

    return multiply, convolve


def _tensorflow(side: int, cells: int, kind: str) -> tuple[Callable[[], None], Callable[[], None]]:
    import tensorflow as tf

    dtype = tf.float16 if kind == "cuda" else tf.float32
    matrix = tf.ones((side, side), dtype)
    images, weights = tf.ones((cells, PIXELS, PIXELS, CHANNELS), dtype), tf.ones((3, 3, CHANNELS, CHANNELS), dtype)

    def multiply() -> None:
        float(tf.linalg.matmul(matrix, matrix)[0, 0])

    def convolve() -> None:
        float(tf.nn.conv2d(images, weights, 1, "SAME")[0, 0, 0, 0])

    return multiply, convolve
