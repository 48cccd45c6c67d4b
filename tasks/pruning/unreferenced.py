"""Since when nothing has referred to something: noted on this machine, so that it goes only after a while.

A night on another machine may be about to refer to it, and the store tells no dates that can be trusted. Losing the
notes costs time and nothing else: the while begins anew.
"""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

from infra.local.files import write_atomic
from tasks.context import Context
from validation.digest import digest

# A clock that jumps ahead must not be enough: it was seen so on this many occasions.
SIGHTINGS = 3


class UnreferencedSince:
    """What was seen without any reference, since when and how often; ``save`` forgets what was not seen again."""

    def __init__(self, context: Context) -> None:
        self._path = context.workspace.home / "cache" / f"unreferenced-{digest(context.store.uri)}.json"
        self._after = timedelta(days=context.settings.prune.orphan_days)
        self._before = self._read()
        self._now = datetime.now(UTC)
        self._seen: dict[str, tuple[str, int]] = {}
        self.waiting: Counter[str] = Counter()

    def is_due(self, name: str) -> bool:
        """Note that nothing refers to ``name``; return whether that has been so for long enough."""
        since, times = self._before.get(name, (self._now.isoformat(), 0))
        self._seen[name] = since, times + 1
        due = times + 1 >= SIGHTINGS and self._now - datetime.fromisoformat(since) >= self._after
        if not due:
            self.waiting[name.partition("/")[0]] += 1
        return due

    def save(self) -> None:
        """Write the notes down.

        Raises:
            RetrainError: when the disk is full.
        """
        write_atomic(self._path, json.dumps(self._seen).encode())

    def _read(self) -> dict[str, tuple[str, int]]:
        try:
            noted: Any = json.loads(self._path.read_text())
            return {str(name): (_moment(since), int(times)) for name, (since, times) in noted.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}


def _moment(text: str) -> str:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a moment without a time zone")
    return text
