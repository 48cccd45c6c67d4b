"""What every stage receives: the settings and the places that it reads from and writes to."""

from __future__ import annotations

from dataclasses import dataclass

from infra.local.files import Workspace
from infra.settings.settings import Settings
from infra.store.base import Store
from infra.store.opening import open_store
from infra.store.records import Records
from tasks.progress import Progress

__all__ = ["Context", "Progress"]


@dataclass(frozen=True)
class Context:
    """The settings, store and home folder of one night."""

    settings: Settings
    store: Store
    records: Records
    workspace: Workspace

    @classmethod
    def open(cls, settings: Settings) -> Context:
        """Open the store that the settings name; whether it answers shows on first use."""
        store = open_store(
            settings.store, endpoint=settings.store_endpoint, region=settings.store_region, wire=settings.wire
        )
        return cls(settings, store, Records(store), Workspace(settings.home))
