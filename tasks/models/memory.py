"""Memory: what a training holds stays as it is however long it takes, and without any left it takes smaller batches.

Out of memory costs a batch its size, not the night its training. Neither framework is imported to know its error.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tasks.models import Recipe

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Recipe)
T = TypeVar("T")

# torch.OutOfMemoryError; tensorflow.errors.ResourceExhaustedError; Python's own.
_NAMES = {"OutOfMemoryError", "ResourceExhaustedError", "MemoryError"}
# Older paths of both raise a plain RuntimeError with these words.
_WORDS = ("out of memory", "can't allocate memory")
SMALLEST_BATCH = 4
# Batches of torch after which memory is released.
RELEASED = 50


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the device, or the machine, has no memory left."""
    if any(kind.__name__ in _NAMES for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)


def fit_in_memory(fit: Callable[[R], T], recipe: R, tell: Callable[[str], None]) -> tuple[T, R]:
    """Return what ``fit`` makes of the recipe, or of one with half the batch, and again half; and the recipe it took.

    The fit begins anew each time, so the outcome is that of the smaller batch from its first step.
    """
    while True:
        try:
            return fit(recipe), recipe
        except Exception as error:
            half = recipe.batch_size // 2
            if not out_of_memory(error) or half < SMALLEST_BATCH:
                raise
            tell(f"out of memory with batches of {recipe.batch_size}: again with {half}")
        # The error's frames hold the model and its batches; they are gone only now.
        gc.collect()
        recipe = recipe.model_copy(update={"batch_size": half})


def releasing(batches: Iterable[T]) -> Iterator[T]:
    """Yield ``batches``; before the first, and after every ``RELEASED`` of them, freed memory is released."""
    for number, batch in enumerate(batches):
        if number % RELEASED == 0:
            release_memory()
        yield batch


def release_memory() -> None:
    """Give freed memory back to the system.

    glibc keeps torch's large blocks in pieces that fit nothing later: 0.1 GiB more every 1,000 batches of 64 cells of
    32 pixels. Takes 20 ms, and the next batch takes its memory anew.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library has no such call, and may not need it
        ctypes.CDLL(None).malloc_trim(0)
