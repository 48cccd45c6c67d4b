"""How far a long stage is: count, rate, time left; told to the log and to who watches (a terminal, Prefect's pages)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """How far a stage is. ``rate`` is items a second since its beginning."""

    doing: str
    done: int
    total: int
    rate: float

    @property
    def seconds_left(self) -> float:
        """Seconds until the end at this rate."""
        return (self.total - self.done) / self.rate if self.rate else 0.0

    def __str__(self) -> str:
        return f"{self.doing} {self.done:,} of {self.total:,} ({self.rate:,.0f}/s, {self.seconds_left:.0f} s left)"


Watcher = Callable[[Step], None]
_watchers: list[tuple[Watcher, float]] = []


def watch(watcher: Watcher, every_seconds: float) -> None:
    """Tell ``watcher`` of every stage from now on: at most so often, and once at a stage's end."""
    _watchers.append((watcher, every_seconds))


@contextmanager
def watched_by(watcher: Watcher, every_seconds: float) -> Iterator[None]:
    """Tell ``watcher`` as long as this lasts."""
    watch(watcher, every_seconds)
    try:
        yield
    finally:
        _watchers.remove((watcher, every_seconds))


class Progress:
    """Counts what a stage has done and tells it: the log every few seconds, watchers as often as they want."""

    EVERY_SECONDS = 5.0

    def __init__(self, log: logging.Logger, doing: str, total: int) -> None:
        self._doing, self._total, self._done = doing, total, 0
        self._started = time.monotonic()
        # Marked, so that a terminal that draws a bar can leave these lines out.
        self._listeners: list[tuple[Watcher, float]] = [
            (lambda step: log.info("%s", step, extra={"is_progress": True}), self.EVERY_SECONDS),
            *_watchers,
        ]
        self._told = [self._started] * len(self._listeners)

    def advance(self, count: int = 1) -> None:
        """Count ``count`` more items as done."""
        self._done += count
        now = time.monotonic()
        over = self._done >= self._total
        for number, (watcher, every) in enumerate(self._listeners):
            # The log has no use for the end: the stage says itself what came of it.
            if now - self._told[number] >= every or (over and number > 0):
                self._told[number] = now
                watcher(Step(self._doing, self._done, self._total, self._done / max(now - self._started, 1e-9)))
