"""Out of memory: retried with half the batch; any other error is raised. Freed memory returns to the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tasks.models.memory import SMALLEST_BATCH, fit_in_memory, out_of_memory
from tests import ROOT
from tests.fake_cnn import DefaultRecipe

pytestmark = pytest.mark.thorough


class ResourceExhaustedError(Exception):
    """TensorFlow's error, by its name."""


class OutOfMemoryError(RuntimeError):
    """Torch's error, by its name."""


OURS = [
    OutOfMemoryError("CUDA out of memory"),
    ResourceExhaustedError("OOM when allocating tensor"),
    MemoryError(),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    RuntimeError("CUDA error: out of memory"),
]


@pytest.mark.parametrize("error", OURS, ids=lambda error: type(error).__name__)
def test_out_of_memory_is_recognised_for_both_frameworks(error: Exception) -> None:
    told: list[str] = []

    def fit(recipe: DefaultRecipe) -> int:
        if recipe.batch_size > 8:
            raise error
        return recipe.batch_size

    made, recipe = fit_in_memory(fit, DefaultRecipe(batch_size=32), told.append)
    assert (made, recipe.batch_size) == (8, 8)
    assert told == ["out of memory with batches of 32: again with 16", "out of memory with batches of 16: again with 8"]


def test_it_gives_up_at_the_smallest_batch() -> None:
    seen: list[int] = []

    def fit(recipe: DefaultRecipe) -> None:
        seen.append(recipe.batch_size)
        raise MemoryError

    with pytest.raises(MemoryError):
        fit_in_memory(fit, DefaultRecipe(batch_size=20), lambda _: None)
    assert seen == [20, 10, 5]
    assert min(seen) >= SMALLEST_BATCH


def test_another_error_is_not_retried() -> None:
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    seen: list[int] = []

    def fit(recipe: DefaultRecipe) -> None:
        seen.append(recipe.batch_size)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fit_in_memory(fit, DefaultRecipe(batch_size=32), lambda _: None)
    assert seen == [32]


def test_memory_freed_between_used_blocks_returns_to_the_system() -> None:
    code = """
from pathlib import Path
from infra.processes.memory import release_memory

def held():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) // 1024

before = held()
blocks = [bytearray(100_000) for _ in range(2000)]
del blocks[:-1]
kept = held() - before
release_memory()
print(kept, held() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    kept, left = map(int, done.stdout.split())
    assert kept > 150
    assert left < 50
