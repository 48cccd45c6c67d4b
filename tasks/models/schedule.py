"""The learning rate schedule and the end of a fit, both by the losses on the tuning patients, for both CNNs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Constant learning rate with warm-up and cooldown (Hägele et al. 2024, arXiv:2405.18392).

    It rises over the first ``warmup`` epochs and falls to 0 over the last ``cooldown``. A cosine over a fixed number of
    epochs cannot end early: at a high rate the weights are poor. Here the rate begins to fall when the tuning loss
    has not improved for ``patience`` epochs, and the fit ends when it has fallen, at the latest after ``epochs``. The
    losses of the ``first`` epochs are ignored, since their task is another.
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
        """Return the schedule for ``epochs`` that are each ``factor`` times too short.

        It rises for at most a quarter of the epochs, and falls for at most the rest.
        """
        rises = min(warmup * factor, epochs / 4)
        falls = max(1, min(round(cooldown * factor), epochs - math.ceil(rises)))
        return cls(epochs, falls, max(1, round(patience * factor)), rises, first)

    def length(self, losses: Sequence[float]) -> int:
        """Return the total number of epochs, as far as the tuning losses so far (nats) determine it."""
        lowest = self.first
        for last in range(self.first, min(len(losses), self.epochs - self.cooldown)):
            if losses[last] < losses[lowest]:
                lowest = last
            if last - lowest >= self.patience:
                return last + 1 + self.cooldown
        return self.epochs

    def is_over(self, losses: Sequence[float]) -> bool:
        """Return whether the fit is over."""
        return len(losses) >= self.length(losses)

    def risen(self, at: float) -> float:
        """Return the share of the peak rate that warm-up has reached ``at`` a time in epochs."""
        return min(1.0, 0.1 + 0.9 * at / self.warmup) if self.warmup else 1.0

    def rate(self, at: float, losses: Sequence[float]) -> float:
        """Return the share of the peak rate ``at`` a time in epochs: 1.5 is the middle of the second."""
        left = min(1.0, max(0.0, (self.length(losses) - at) / self.cooldown))
        return self.risen(at) * (1 - math.cos(math.pi * left)) / 2
