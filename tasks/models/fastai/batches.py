"""The batches that fastai's Learner is shown: on a GPU the cells lie on it, and are varied there.

Imported, like torch itself, only by the process that trains with it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.models import Images, Labels, Recipe
from tasks.models.fastai.ranks import Ranks
from tasks.models.memory import releasing
from tasks.models.preparation import shuffled_batches, smoothed
from tasks.models.variation import Draws, area_weights, augment, draw, shrunk

__all__ = ["SCORING_BATCH", "Batches", "Shuffled", "chunks", "lie_on_device", "shrunk_on_device", "varied_on_device"]

SCORING_BATCH = 64
# Cells are copied to the device so many at a time.
COPIED = 4096

log = logging.getLogger(__name__)


def lie_on_device(images: Images, device: Any) -> bool:
    """Return whether the cells are to be held by the device: a GPU, with twice the room that they take."""
    import torch

    return bool(device.type == "cuda" and 2 * images.nbytes <= torch.cuda.mem_get_info(device)[0])


class Batches:
    """What a Learner needs of a loader: whole batches by index, no item ever touched alone."""

    def __init__(self, images: Images, labels: Labels, device: Any) -> None:
        self.dataset, self.labels, self.device = images, labels, device
        self.held = _copied(images, device) if lie_on_device(images, device) else None

    def __len__(self) -> int:
        return len(self._indices())

    def _indices(self) -> list[npt.NDArray[np.intp]]:
        return chunks(np.arange(len(self.dataset)))

    def _prepared(self, number: int, chosen: npt.NDArray[np.intp]) -> Any:
        """Return the cells of a batch as they are shown, uint8 [n, side, side, 3] on the device."""
        import torch

        del number
        if self.held is None:
            return torch.from_numpy(self.dataset[chosen]).to(self.device)
        return self.held[torch.from_numpy(chosen).to(self.device)]

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        import torch

        for number, chosen in enumerate(releasing(self._indices())):
            yield self._prepared(number, chosen), torch.from_numpy(self.labels[chosen]).to(self.device)


class Shuffled(Batches):
    """Shuffled, varied, and smaller in the first ``small`` epochs; each batch decided by seed, epoch and number.

    ``recipe``: with ``small_size``, the share of their side that small cells have.
    """

    def __init__(self, images: Images, labels: Labels, recipe: Any, seed: int, small: int, ranks: Ranks) -> None:
        super().__init__(images, smoothed(labels, recipe.smoothing), ranks.device)
        self.recipe: Recipe = recipe
        self.size, self.seed, self.small, self.ranks, self.epoch = recipe.small_size, seed, small, ranks, 0

    def _indices(self) -> list[npt.NDArray[np.intp]]:
        batches = shuffled_batches(len(self.dataset), self.recipe.batch_size, self.seed, self.epoch)
        return [self.ranks.share(batch) for batch in batches]

    def _prepared(self, number: int, chosen: npt.NDArray[np.intp]) -> Any:
        import torch

        # The first rank's cells vary as they would without others.
        rng = np.random.default_rng((self.seed, self.epoch, number) + ((self.ranks.rank,) if self.ranks.rank else ()))
        variation, is_small = self.recipe.variation, self.epoch < self.small
        if self.held is None:
            images = augment(self.dataset[chosen], variation, rng)
            return torch.from_numpy(shrunk(images, self.size) if is_small else images).to(self.device)
        cells = super()._prepared(number, chosen)
        cells = varied_on_device(cells, draw(len(chosen), cells.shape[1], variation, rng))
        return shrunk_on_device(cells, self.size) if is_small else cells

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        yield from super().__iter__()
        self.epoch += 1


def varied_on_device(cells: Any, draws: Draws) -> Any:
    """Return uint8 [n, side, side, 3], varied as ``augment`` would do it but for a rounding: torch, on their device."""
    import torch
    from torch.nn.functional import grid_sample

    back = torch.from_numpy(draws.returns).to(cells.device)
    # Pixels (x, y, 1) of the picture that is shown; grid_sample counts from -1 to 1 between the outermost ones.
    x, y = _pixels(cells.shape[1], cells.device)
    place = torch.einsum("nij,jp->npi", back, torch.stack([x, y, torch.ones_like(x)]))
    grid = (place * (2 / (cells.shape[1] - 1)) - 1).reshape(*cells.shape[:3], 2)
    shown = grid_sample(cells.permute(0, 3, 1, 2).float(), grid, align_corners=True).permute(0, 2, 3, 1).round()
    if draws.gains is not None:
        shown = (shown * torch.from_numpy(draws.gains).to(cells.device)).clamp(0, 255)
    return shown.to(torch.uint8)


def shrunk_on_device(cells: Any, size: float) -> Any:
    """Return uint8 [n, side, side, 3] with sides ``size`` times as long: ``shrunk``, by torch, on their device."""
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


def _copied(images: Images, device: Any) -> Any:
    """Return the cells on the device; this machine's memory holds a few of them at a time."""
    import torch

    held = torch.empty(images.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(images), COPIED):
        held[start : start + COPIED] = torch.from_numpy(np.array(images[start : start + COPIED]))
    log.info("%d cells lie on the device, %d MB", len(images), images.nbytes // 1_000_000)
    return held


def chunks(items: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """Return the items in the batches in which they are scored."""
    return [items[start : start + SCORING_BATCH] for start in range(0, len(items), SCORING_BATCH)]
