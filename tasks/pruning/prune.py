"""Prune: remove what is not needed any more, by a stated policy (docs/operations.md), and say what and why.

Not a stage: it changes no record's meaning, and a night that cannot prune is as good as any other.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from infra.registry.registry import Registry
from tasks.context import Context
from tasks.pruning.local import local_removals
from tasks.pruning.references import References
from tasks.pruning.removal import AREAS, Removal
from tasks.pruning.retire import retirements
from tasks.pruning.store import registry_removals, store_removals
from tasks.pruning.unreferenced import UnreferencedSince
from validation.errors import NightRunning, RetrainError, Unreachable

log = logging.getLogger(__name__)


@dataclass
class Pruned:
    """What was removed, or in a dry run would be; what could not be; what waits for its time."""

    dry_run: bool
    removals: list[Removal] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    waiting: dict[str, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(removal.size for removal in self.removals)

    def by_reason(self) -> dict[tuple[str, str], tuple[int, int]]:
        """Return how many things and bytes there are by area and reason."""
        sums: dict[tuple[str, str], tuple[int, int]] = {}
        for removal in sorted(self.removals, key=lambda removal: AREAS.index(removal.area)):
            count, size = sums.get((removal.area, removal.why), (0, 0))
            sums[removal.area, removal.why] = count + 1, size + removal.size
        return sums

    def take(self, removals: Iterable[Removal]) -> None:
        """Carry removals out one by one, or in a dry run note them. One that fails costs itself.

        Raises:
            Unreachable: when the store or the registry is gone, and asking on is of no use.
        """
        for removal in removals:
            try:
                if not self.dry_run:
                    removal.remove()
            except Unreachable:
                raise
            except RetrainError as error:
                self.problems.append(str(error.message))
            else:
                self.removals.append(removal)


def prune(context: Context, registry: Registry, *, dry_run: bool = False) -> Pruned:
    """Remove what is not needed any more; whoever calls holds the night's lock. What cannot be done is told.

    Raises nothing for trouble with the store, the registry or the disk: see ``Pruned.problems``.
    """
    pruned = Pruned(dry_run)
    # Nobody changes the champion, or promotes an old challenger by hand, while references are counted.
    with _told(pruned, "the store"), context.workspace.champion_lock():
        references = References(context, registry)
        pruned.take(retirements(context, references, registry))
        references.count_as_retired({r.name for r in pruned.removals})
        orphans = UnreferencedSince(context)
        pruned.take(store_removals(context, references, orphans))
        pruned.take(registry_removals(registry, orphans))
        if not dry_run:
            orphans.save()
        pruned.waiting = dict(orphans.waiting)
    held: set[str] | None = None
    with _told(pruned, "fetched images"):
        held = _held(context, References(context, registry))
    with _told(pruned, "this machine"):
        gone = {removal.name for removal in pruned.removals}
        pruned.take(local_removals(context, held, gone))
    return pruned


def tidy(context: Context) -> None:
    """Prune at the end of a night, where the settings say so; whatever goes wrong is a warning."""
    if not context.settings.prune.automatic:
        return
    try:
        pruned = prune(context, Registry(context.settings))
    except Exception as error:
        log.warning("not pruned: %s: %s", type(error).__name__, error)
        return
    for problem in pruned.problems:
        log.warning("not pruned: %s", problem)
    if pruned.removals:
        log.info("pruned %s things, %.1f MB", f"{len(pruned.removals):,}", pruned.size / 1e6)


@contextmanager
def _told(pruned: Pruned, what: str) -> Iterator[None]:
    """Let what goes wrong with one part be told, and the other parts go on."""
    try:
        yield
    except (RetrainError, OSError) as error:
        pruned.problems.append(f"{what}: {error.message if isinstance(error, RetrainError) else error}")


def tidy_here(context: Context) -> None:
    """Prune the caches of a machine that only trains; where a night runs on the same home folder, that prunes them."""
    if not context.settings.prune.automatic:
        return
    pruned = Pruned(dry_run=False)
    try:
        with context.workspace.night_lock():
            pruned.take(local_removals(context, None, ()))
    except NightRunning:
        return
    except Exception as error:
        log.warning("not pruned: %s: %s", type(error).__name__, error)
    for problem in pruned.problems:
        log.warning("not pruned: %s", problem)


def _held(context: Context, references: References) -> set[str]:
    """Return the SHA-256 of holdout cells that a rollback or an approval would score again."""
    tables = (context.records.load_table(evaluation.predictions) for evaluation in references.held_evaluations())
    return {sha256 for table in tables for sha256 in table["sha256"]}
