"""An XResNet18 in name: one block a stage, a quarter as wide. What ``fit`` promises does not depend on its size."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from tasks.models import fastai_callbacks, fastai_xresnet, memory


def shrink() -> None:
    """Let this process build the small one wherever it builds an XResNet18."""
    fastai_xresnet._frameworks()  # without what they have to say when they are imported
    from fastai.layers import ResBlock
    from fastai.vision.models import xresnet

    xresnet.xresnet18 = partial(xresnet.XResNet, ResBlock, 1, [1, 1, 1, 1], stem_szs=(16, 16, 64), widen=0.25)


def releases(shown: Sequence[object]) -> list[int]:
    """Return a list to which each release of memory adds how many batches were ``shown`` by then: due after three."""
    released, own = [], memory.release_memory

    def release() -> None:
        released.append(len(shown))
        own()

    for room in (fastai_callbacks, fastai_xresnet):
        room.RELEASED, room.release_memory = 3, release  # type: ignore[attr-defined]
    return released
