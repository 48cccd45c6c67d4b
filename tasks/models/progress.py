"""How far a fit is: its epochs so far, and what they say about the next one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tasks.models import Deadline
from tasks.models.schedule import Schedule
from tasks.models.selection import Selection
from validation.records import EpochRecord

Listener = Callable[[int, int], None]
_listeners: list[Listener] = []


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Call ``listener`` before every batch of a fit: batches done, and how many in all, as far as that is known."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@dataclass
class FitProgress:
    """The epochs of a fit, with the schedule, the deadline and the selection that they are under."""

    schedule: Schedule
    deadline: Deadline
    selection: Selection
    history: list[EpochRecord] = field(default_factory=list)

    @property
    def kept(self) -> int:
        """The number of the epoch whose weights are kept (tasks.models.selection); 0 before the first has ended."""
        return next((record.epoch for record in reversed(self.history) if record.is_kept), 0)

    @property
    def losses(self) -> list[float]:
        """The loss on the tuning patients after each epoch, nats."""
        return [record.valid_loss for record in self.history]

    @property
    def is_over(self) -> bool:
        """Whether no epoch is left to do."""
        return self.schedule.is_over(self.losses)

    def rate(self, step: int, steps: int) -> float:
        """Return the share of the peak rate for step ``step`` of the ``steps`` of the epoch that has begun."""
        for listener in _listeners:
            listener(len(self.history) * steps + step, self.schedule.length(self.losses) * steps)
        return self.schedule.rate(len(self.history) + step / steps, self.losses)
