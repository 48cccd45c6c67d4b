"""An XResNet18 in name: one block a stage, a quarter as wide. What ``fit`` promises does not depend on its size."""

from __future__ import annotations

from functools import partial

from tasks.models.fastai import cnn as fastai_xresnet


def shrink() -> None:
    """Let this process build the small one wherever it builds an XResNet18."""
    fastai_xresnet._frameworks()  # without what they have to say when they are imported
    from fastai.layers import ResBlock
    from fastai.vision.models import xresnet

    xresnet.xresnet18 = partial(xresnet.XResNet, ResBlock, 1, [1, 1, 1, 1], stem_szs=(16, 16, 64), widen=0.25)
