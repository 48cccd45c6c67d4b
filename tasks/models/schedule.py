"""How the learning rate rises, stays and falls, and when a fit is over: both by the losses on the validation patients.

For both CNNs alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """Up over the first ``warmup`` epochs, flat, and down to nothing over the last ``cooldown`` (Hägele et al. 2024).

    arXiv:2405.18392, "constant learning rate with cooldown". A cosine over a fixed number of epochs cannot be ended
    early: while its rate is high, the weights are worth little. Here the rate begins to fall when the validation loss
    has not been lower for ``patience`` epochs, and the fit is over when it has fallen; at the latest after ``epochs``.
    The losses of the ``first`` epochs decide nothing, since theirs is another task.

    It is a function of the epochs so far, so that a fit that was killed goes on as it would have.
    """

    epochs: int
    cooldown: int
    patience: int
    warmup: float = 0.0
    first: int = 0

    @classmethod
    def scaled(
        cls, epochs: int, factor: float, *, cooldown: int, patience: int, warmup: float = 0.0, first: int = 0
    ) -> Schedule:
        """Return the schedule of ``epochs`` of which each has only the ``factor``-th part of the steps it should.

        Of a few it rises for a quarter at most, and falls for no more than the rest.
        """
        rises = min(warmup * factor, epochs / 4)
        falls = max(1, min(round(cooldown * factor), epochs - math.ceil(rises)))
        return cls(epochs, falls, max(1, round(patience * factor)), rises, first)

    def length(self, losses: Sequence[float]) -> int:
        """Return how many epochs the fit will have had, as far as the validation losses of its epochs tell (nats)."""
        lowest = self.first
        for last in range(self.first, min(len(losses), self.epochs - self.cooldown)):
            if losses[last] < losses[lowest]:
                lowest = last
            if last - lowest >= self.patience:
                return last + 1 + self.cooldown
        return self.epochs

    def is_over(self, losses: Sequence[float]) -> bool:
        """Return whether there is nothing left to do."""
        return len(losses) >= self.length(losses)

    def risen(self, at: float) -> float:
        """Return the share of the peak that it has risen to ``at`` so many epochs, 1.5 in the middle of the second."""
        return min(1.0, 0.1 + 0.9 * at / self.warmup) if self.warmup else 1.0

    def rate(self, at: float, losses: Sequence[float]) -> float:
        """Return the share of the peak rate ``at`` so many epochs."""
        left = min(1.0, max(0.0, (self.length(losses) - at) / self.cooldown))
        return self.risen(at) * (1 - math.cos(math.pi * left)) / 2
