"""Nights without Prefect: outside a flow a task would start a server, and the plain functions do the same."""

from __future__ import annotations

import pytest

from flows import retrain


def plain_stages(patch: pytest.MonkeyPatch) -> None:
    """Let a night call its stages as the functions that they are, and publish nothing, which needs Prefect's server."""
    for name in [name for name in vars(retrain) if name.endswith("_task")]:
        patch.setattr(retrain, name, getattr(retrain, name).fn)
    patch.setattr(retrain, "publish_task", lambda *_: None)
