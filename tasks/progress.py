"""Progress of a long stage: count, rate, time left; for the log and for watchers (a terminal, Prefect's pages)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """The progress of a stage. ``rate`` is items per second since its start."""

    doing: str
    done: int
    total: int
    rate: float

    @property
    def seconds_left(self) -> float:
        """Seconds until the end, at this rate."""
        return (self.total - self.done) / self.rate if self.rate else 0.0

    def __str__(self) -> str:
        rate = f"{self.rate:,.0f}/s, " if self.rate >= 1 else ""
        return f"{self.doing} {self.done:,} of {self.total:,} ({rate}{self.seconds_left:.0f} s left)"


Watcher = Callable[[Step], None]
_watchers: list[tuple[Watcher, float]] = []


def watch(watcher: Watcher, every_seconds: float) -> None:
    """Call ``watcher`` for every stage from now on: at most every ``every_seconds``, and once at a stage's end."""
    _watchers.append((watcher, every_seconds))


@contextmanager
def watched_by(watcher: Watcher, every_seconds: float) -> Iterator[None]:
    """Call ``watcher`` within a ``with``."""
    watch(watcher, every_seconds)
    try:
        yield
    finally:
        _watchers.remove((watcher, every_seconds))


class Progress:
    """Counts the finished items of a stage and reports them: to the log every few seconds, to each watcher as asked."""

    EVERY_SECONDS = 5.0

    def __init__(self, log: logging.Logger, doing: str, total: int, *, log_every: float | None = None) -> None:
        self._doing, self._total, self._done = doing, total, 0
        self._started = time.monotonic()
        # Marked, so that a terminal with a progress bar can omit these lines.
        self._listeners: list[tuple[Watcher, float]] = [
            (lambda step: log.info("%s", step, extra={"is_progress": True}), log_every or self.EVERY_SECONDS),
            *_watchers,
        ]
        self._reported = [self._started] * len(self._listeners)

    def advance(self, count: int = 1) -> None:
        """Count ``count`` more items as done."""
        self.reach(self._done + count, self._total)

    def reach(self, done: int, total: int) -> None:
        """Set how many items are done, and how many there are: some stages find out on their way."""
        self._done, self._total = done, total
        now = time.monotonic()
        finished = done >= total
        for number, (watcher, every) in enumerate(self._listeners):
            # Not to the log at the end: the stage logs its result itself.
            if now - self._reported[number] >= every or (finished and number > 0):
                self._reported[number] = now
                watcher(Step(self._doing, done, total, done / max(now - self._started, 1e-9)))

    def end(self) -> None:
        """Tell the watchers that the stage is over, however many items were done."""
        for watcher, _ in self._listeners[1:]:
            watcher(Step(self._doing, self._done, self._done, 0.0))
