"""How long objects have been unreferenced, noted on this machine; losing the file restarts the grace period.

A night on another machine may be about to refer to such an object, and the store has no dates that can be trusted.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

from pydantic import AwareDatetime, TypeAdapter

from infra.local.files import write_atomic
from tasks.context import Context
from validation.digest import digest

# A clock that jumps ahead is not enough: an object must have been seen unreferenced on this many occasions.
SIGHTINGS = 3
_NOTES = TypeAdapter(dict[str, tuple[AwareDatetime, int]])


class UnreferencedSince:
    """When an object was first seen without a reference, and how often; ``save`` drops what was not seen again."""

    def __init__(self, context: Context) -> None:
        self._path = context.workspace.home / "cache" / f"unreferenced-{digest(context.store.uri)}.json"
        self._after = timedelta(days=context.settings.prune.orphan_days)
        self._now = datetime.now(UTC)
        self._seen: dict[str, tuple[datetime, int]] = {}
        self.waiting: Counter[str] = Counter()
        try:
            self._before = _NOTES.validate_json(self._path.read_bytes())
        except (OSError, ValueError):
            self._before = {}

    def is_due(self, name: str) -> bool:
        """Note that nothing refers to ``name``; return whether that has been so for long enough."""
        since, times = self._before.get(name, (self._now, 0))
        self._seen[name] = since, times + 1
        due = times + 1 >= SIGHTINGS and self._now - since >= self._after
        if not due:
            self.waiting[name.partition("/")[0]] += 1
        return due

    def save(self) -> None:
        """Write the notes; raises RetrainError when the disk is full."""
        write_atomic(self._path, _NOTES.dump_json(self._seen))
