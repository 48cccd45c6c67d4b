"""What every stage is given: the settings and the places that it reads from and writes to."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from infra.files import Workspace
from infra.records import Records
from infra.settings import Settings
from infra.store import Store, open_store


@dataclass(frozen=True)
class Context:
    """One night's surroundings."""

    settings: Settings
    store: Store
    records: Records
    workspace: Workspace

    @classmethod
    def open(cls, settings: Settings) -> Context:
        """Open the store that the settings name; whether it answers shows at its first use."""
        store = open_store(
            settings.store, endpoint=settings.store_endpoint, region=settings.store_region, wire=settings.wire
        )
        return cls(settings, store, Records(store), Workspace(settings.home))


class Progress:
    """Tells the log how far a long stage is: at most every few seconds, and once at its end."""

    EVERY_SECONDS = 5.0

    def __init__(self, log: logging.Logger, doing: str, total: int) -> None:
        self._log, self._doing, self._total = log, doing, total
        self._done = 0
        self._started = self._told = time.monotonic()

    def advance(self, count: int = 1) -> None:
        """Count ``count`` more items as done."""
        self._done += count
        now = time.monotonic()
        if now - self._told >= self.EVERY_SECONDS and self._done < self._total:
            self._told = now
            rate = self._done / (now - self._started)
            left = (self._total - self._done) / rate
            self._log.info(
                "%s %s of %s (%s/s, %.0f s left)",
                *(self._doing, f"{self._done:,}", f"{self._total:,}", f"{rate:,.0f}", left),
            )
