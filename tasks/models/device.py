"""Why a framework trains on the CPU, in one sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from infra.processes.driver import driver_problem


def why_no_gpu(framework: str, cuda: str, missing: Callable[[], Sequence[str]], own_words: str = "") -> str:
    """Return why ``framework``, which is built for CUDA ``cuda`` (empty: without), does not use a GPU here.

    ``missing`` returns the libraries that it does not find; ``own_words`` is what it says itself.
    """
    if not cuda:
        return f"this build of {framework} is without CUDA"
    if problem := driver_problem(cuda):
        return problem
    if names := missing():
        return f"{framework} does not find {', '.join(names)}"
    return f"{framework} lists no GPU" + (f": {own_words}" if own_words else ", and does not say why")
