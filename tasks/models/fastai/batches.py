"""The batches for fastai's Learner; on a GPU the cells are stored and augmented there.

Imported, like torch, only by the process that trains with it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.models import Cells, Labels, Recipe
from tasks.models.memory import releasing
from tasks.models.preparation import shuffled_batches, smoothed
from tasks.models.variation import Draws, area_weights, augment, draw, shrunk

SCORING_BATCH = 64
# Cells that are copied to the device at a time.
COPIED = 4096

log = logging.getLogger(__name__)


def fits_on_device(images: Cells, device: Any) -> bool:
    """Return whether to store the cells on the device: a GPU with twice the free memory that they take."""
    import torch

    return bool(device.type == "cuda" and 2 * images.nbytes <= torch.cuda.mem_get_info(device)[0])


class Batches:
    """A loader for a Learner: whole batches by index, never a single item."""

    def __init__(self, images: Cells, labels: Labels, device: Any) -> None:
        self.dataset, self.labels, self.device = images, labels, device
        self.on_device = _copied(images, device) if fits_on_device(images, device) else None

    def __len__(self) -> int:
        return len(self._indices())

    def _indices(self) -> list[npt.NDArray[np.intp]]:
        return chunks(np.arange(len(self.dataset)))

    def _prepared(self, number: int, chosen: npt.NDArray[np.intp]) -> Any:
        """Return the cells of a batch as the network gets them, uint8 [n, side, side, 3] on the device."""
        import torch

        del number
        if self.on_device is None:
            return torch.from_numpy(self.dataset[chosen]).to(self.device)
        return self.on_device[torch.from_numpy(chosen).to(self.device)]

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        import torch

        for number, chosen in enumerate(releasing(self._indices())):
            yield self._prepared(number, chosen), torch.from_numpy(self.labels[chosen]).to(self.device)


class Shuffled(Batches):
    """Shuffled, augmented, and smaller in the first ``small`` epochs; seed, epoch and number determine a batch.

    ``recipe``: with ``small_size``, the relative side of the smaller cells.
    """

    def __init__(self, images: Cells, labels: Labels, recipe: Any, seed: int, small: int, device: Any) -> None:
        super().__init__(images, smoothed(labels, recipe.smoothing), device)
        self.recipe: Recipe = recipe
        self.size, self.seed, self.small, self.epoch = recipe.small_size, seed, small, 0

    def _indices(self) -> list[npt.NDArray[np.intp]]:
        return shuffled_batches(len(self.dataset), self.recipe.batch_size, self.seed, self.epoch)

    def _prepared(self, number: int, chosen: npt.NDArray[np.intp]) -> Any:
        import torch

        rng = np.random.default_rng((self.seed, self.epoch, number))
        variation, is_small = self.recipe.variation, self.epoch < self.small
        if self.on_device is None:
            images = augment(self.dataset[chosen], variation, rng)
            return torch.from_numpy(shrunk(images, self.size) if is_small else images).to(self.device)
        cells = super()._prepared(number, chosen)
        cells = varied_on_device(cells, draw(len(chosen), cells.shape[1], variation, rng))
        return shrunk_on_device(cells, self.size) if is_small else cells

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        yield from super().__iter__()
        self.epoch += 1


def varied_on_device(cells: Any, draws: Draws) -> Any:
    """Return uint8 [n, side, side, 3], augmented by torch on their device; equal to ``augment`` up to rounding."""
    import torch
    from torch.nn.functional import grid_sample

    back = torch.from_numpy(draws.returns).to(cells.device)
    # Pixels (x, y, 1) of the augmented picture; grid_sample counts from -1 to 1 between the outermost ones.
    x, y = _pixels(cells.shape[1], cells.device)
    place = torch.einsum("nij,jp->npi", back, torch.stack([x, y, torch.ones_like(x)]))
    grid = (place * (2 / (cells.shape[1] - 1)) - 1).reshape(*cells.shape[:3], 2)
    shown = grid_sample(cells.permute(0, 3, 1, 2).float(), grid, align_corners=True).permute(0, 2, 3, 1).round()
    if draws.gains is not None:
        shown = (shown * torch.from_numpy(draws.gains).to(cells.device)).clamp(0, 255)
    return shown.to(torch.uint8)


def shrunk_on_device(cells: Any, size: float) -> Any:
    """Return uint8 [n, side, side, 3] with sides ``size`` times as long: ``shrunk`` by torch, on their device."""
    weights = _area_weights(cells.shape[1], size, cells.device)
    return (weights @ (weights @ cells.permute(0, 3, 1, 2).float()).mT).mT.round().byte().permute(0, 2, 3, 1)


@cache
def _pixels(side: int, device: Any) -> tuple[Any, Any]:
    import torch

    y, x = torch.meshgrid(*[torch.arange(side, device=device, dtype=torch.float32)] * 2, indexing="ij")
    return x.flatten(), y.flatten()


@cache
def _area_weights(side: int, size: float, device: Any) -> Any:
    import torch

    return torch.from_numpy(area_weights(side, size)).to(device)


def _copied(images: Cells, device: Any) -> Any:
    """Return the cells on the device, copied a few at a time to save this machine's memory."""
    import torch

    copy = torch.empty(images.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(images), COPIED):
        copy[start : start + COPIED] = torch.from_numpy(np.array(images[start : start + COPIED]))
    log.info("%d cells are stored on the device, %d MB", len(images), images.nbytes // 1_000_000)
    return copy


def chunks(items: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """Divide the items into batches for scoring."""
    return [items[start : start + SCORING_BATCH] for start in range(0, len(items), SCORING_BATCH)]
