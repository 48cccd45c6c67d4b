"""Memory of a training: constant over time, and with smaller batches when it runs out.

Neither framework is imported to recognise its error.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from infra.processes.memory import release_memory
from tasks.models import Recipe

__all__ = ["fit_in_memory", "out_of_memory", "release_memory", "releasing"]

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Recipe)
T = TypeVar("T")

# torch.OutOfMemoryError; tensorflow.errors.ResourceExhaustedError; Python's own.
_NAMES = {"OutOfMemoryError", "ResourceExhaustedError", "MemoryError"}
# Older code paths of both raise a plain RuntimeError with these words.
_WORDS = ("out of memory", "can't allocate memory")
SMALLEST_BATCH = 4
# Batches of torch between releases of memory.
RELEASED = 50


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the device or the machine is out of memory."""
    if any(kind.__name__ in _NAMES for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)


def fit_in_memory(fit: Callable[[R], T], recipe: R, warn: Callable[[str], None]) -> tuple[T, R]:
    """Return the result of ``fit``, called with half the batch whenever memory runs out; and the recipe that it took.

    Each fit starts over, so the result is that of the smaller batch from the first step.
    """
    while True:
        try:
            return fit(recipe), recipe
        except Exception as error:
            half = recipe.batch_size // 2
            if not out_of_memory(error) or half < SMALLEST_BATCH:
                raise
            warn(f"out of memory with batches of {recipe.batch_size}: again with {half}")
        # The error's frames referred to the model and its batches until here.
        gc.collect()
        recipe = recipe.model_copy(update={"batch_size": half})


def releasing(batches: Iterable[T]) -> Iterator[T]:
    """Yield ``batches``; release freed memory before the first and after every ``RELEASED`` of them."""
    for number, batch in enumerate(batches):
        if number % RELEASED == 0:
            release_memory()
        yield batch
