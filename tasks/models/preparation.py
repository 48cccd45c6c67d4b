"""What both CNNs do alike before and after their frameworks: batches, augmentation, and the model file's contract.

NumPy and ONNX only, so that both learn from the same cells in the same way and this imports no framework.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.models import Labels, Recipe, TrainingData, Variation
from tasks.models.schedule import Schedule
from tasks.models.variation import augment
from validation.errors import TrainingFailed

INPUT, OUTPUT = "images", "probability"
# fastai's XResNet halves a cell five times; below this nothing would be left to convolve.
SMALLEST_SIDE = 32
BATCH_COLUMNS = 8
# A pixel belongs to the cell if one of its channels is brighter; the rest is padding, or the blur of its edge.
BLACK = 0.1
# Brings the colours of a cell, less their mean, to a spread of about one.
CONTRAST = 4.0
# Axes of [n, side, side, 3]: along each a model file adds the mirror images of all the views so far.
MIRRORED = {1: (), 2: (2,), 4: (2, 1)}

log = logging.getLogger(__name__)


def check_data(data: TrainingData, name: str, batch_size: int, devices: int) -> None:
    """Refuse what no recipe can learn from.

    Raises:
        TrainingFailed: when a class is missing in training, validation is empty, the arrays do not fit together, or
            a batch, or validation, does not give every device two cells to normalise by.
    """
    pairs = ((data.train_images, data.train_labels), (data.valid_images, data.valid_labels))
    side = data.train_images.shape[1] if data.train_images.ndim == 4 else 0
    for images, labels in pairs:
        if images.dtype != np.uint8 or images.shape[1:] != (side, side, 3) or labels.shape != (len(images),):
            raise TrainingFailed(
                f"{name}: expected uint8 [n, side, side, 3] with one label each,"
                f" found {images.dtype} {images.shape} with labels {labels.shape}"
            )
    if side < SMALLEST_SIDE:
        raise TrainingFailed(f"{name}: cells of {side} pixels a side are too small, {SMALLEST_SIDE} is the least")
    classes = {float(label) for label in np.unique(data.train_labels)}
    if classes != {0.0, 1.0} or not len(data.valid_labels):
        raise TrainingFailed(
            f"{name}: expected training cells of both classes and some validation cells,"
            f" found training labels {sorted(classes)} and {len(data.valid_labels)} validation cells"
        )
    fewest = min(batch_size, len(data.train_labels), len(data.valid_labels))
    if devices > 1 and fewest < 2 * devices:
        raise TrainingFailed(
            f"{name}: {devices} devices need batches, and sets, of at least {2 * devices} cells, found {fewest}",
            "lower RETRAIN_TRAINING__DEVICES, or raise the recipe's batch_size",
        )


def batch_count(cells: int, batch_size: int) -> int:
    """Return how many batches an epoch has: all cells, none left over, each batch ``batch_size`` or a little more."""
    return max(1, cells // batch_size)


def schedule_of(recipe: Recipe, cells: int, *, warm: bool = False, small_share: float = 0.0) -> Schedule:
    """Return the recipe's schedule, or as much longer a one as it takes a small set to reach ``min_steps`` steps.

    A ``warm`` training needs fewer epochs and steps. The losses of the first ``small_share`` of all decide nothing.
    """
    epochs = recipe.warm_epochs if warm else recipe.epochs
    needed = epochs / recipe.epochs * recipe.min_steps / batch_count(cells, recipe.batch_size)
    planned = max(epochs, math.ceil(needed))
    return Schedule.scaled(
        planned,
        planned / epochs,
        cooldown=recipe.cooldown,
        patience=recipe.patience,
        warmup=recipe.warmup,
        first=round(planned * small_share),
    )


def shuffled_batches(cells: int, batch_size: int, seed: int, epoch: int) -> list[npt.NDArray[np.intp]]:
    """Return the shuffled indices of one epoch's batches.

    A last batch of one cell would break batch normalisation, and a dropped one would waste small sets: so the
    cells are dealt out evenly instead.
    """
    order = np.random.default_rng((seed, epoch)).permutation(cells)
    return np.array_split(order, batch_count(cells, batch_size))


def smoothed(labels: Labels, smoothing: float) -> Labels:
    """Return targets that are ``smoothing / 2`` away from 0 and 1: some cells are labelled wrongly."""
    targets: Labels = labels * np.float32(1 - smoothing) + np.float32(smoothing / 2)
    return targets


def draw_batch(
    data: TrainingData, batch_size: int, variation: Variation, seed: int, folder: Path, *, epoch: int = 0
) -> Path:
    """Write the first training batch as the CNN saw it to ``batch.png``: two rows Parasitized, two rows Uninfected.

    It is made anew from seed, ``epoch`` and number, as the batch itself was, so the training's own chance is not
    touched. ``epoch``: the number under which the first one drew its chance.
    """
    from PIL import Image

    chosen = shuffled_batches(len(data.train_images), batch_size, seed, epoch)[0]
    images = augment(data.train_images[chosen], variation, np.random.default_rng((seed, epoch, 0)))
    positive, side = data.train_labels[chosen] > 0.5, images.shape[1]
    sheet = np.zeros((4, BATCH_COLUMNS, side, side, 3), np.uint8)
    for rows, of_class in ((sheet[:2], positive), (sheet[2:], ~positive)):
        shown = images[of_class][: 2 * BATCH_COLUMNS]
        flat = rows.reshape(-1, side, side, 3)
        flat[: len(shown)] = shown
    path = folder / "batch.png"
    Image.fromarray(sheet.transpose(0, 2, 1, 3, 4).reshape(4 * side, BATCH_COLUMNS * side, 3)).save(path)
    return path


def finish_onnx(model: Any, path: Path) -> None:
    """Give an exported graph the model file's names, check it, and write it as one self-contained file.

    Exporters leave source paths and graph names from their process in the file; without them the same training
    gives the same bytes.
    """
    import onnx

    graph = model.graph
    _rename(graph, graph.input[0].name, INPUT)
    _rename(graph, graph.output[0].name, OUTPUT)
    _number_tensors(graph)
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
    onnx.save_model(model, str(beside), save_as_external_data=False)
    beside.replace(path)


def _number_tensors(graph: Any) -> None:
    """Order the nodes as the output asks for them, name tensors by their place, put weights in the order of their use.

    tf2onnx orders branches and attributes, and numbers its names, as its optimisers happen to walk the graph, so that
    equal trainings gave unequal files.
    """
    nodes = _in_order(graph)
    del graph.node[:]
    graph.node.extend(nodes)
    names: dict[str, str] = {"": "", INPUT: INPUT, OUTPUT: OUTPUT}
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
    """Return copies of the nodes, each after those whose outputs it takes, first input first."""
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


def _rename(graph: Any, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    for value in (*graph.input, *graph.output):
        if value.name == old:
            value.name = new
