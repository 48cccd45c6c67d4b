"""Prune: remove what is not needed any more, by a stated policy (docs/operations.md), and report what and why.

Not a stage: it changes no record's meaning, and a night that cannot prune is as good as any other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from infra.registry.registry import Registry
from tasks.context import Context
from tasks.pruning.local import local_removals
from tasks.pruning.references import References
from tasks.pruning.removal import AREAS, Removal
from tasks.pruning.retire import retirements
from tasks.pruning.store import part_removals, registry_removals, store_removals
from tasks.pruning.unreferenced import UnreferencedSince
from validation.errors import NightRunning, RetrainError, Unreachable

log = logging.getLogger(__name__)


@dataclass
class Pruned:
    """What was removed, or in a dry run would be; what failed; what waits for its grace period, by kind."""

    dry_run: bool = False
    removals: list[Removal] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    waiting: dict[str, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(removal.size for removal in self.removals)

    def by_reason(self) -> dict[tuple[str, str], tuple[int, int]]:
        """Return the number of things and bytes by area and reason."""
        sums: dict[tuple[str, str], tuple[int, int]] = {}
        for removal in sorted(self.removals, key=lambda removal: AREAS.index(removal.area)):
            count, size = sums.get((removal.area, removal.why), (0, 0))
            sums[removal.area, removal.why] = count + 1, size + removal.size
        return sums

    def take(self, removals: Iterable[Removal]) -> None:
        """Carry removals out one by one, or in a dry run note them. One that fails does not stop the others.

        Raises:
            Unreachable: when the store or the registry is gone, so that all further removals would fail too.
        """
        for removal in removals:
            try:
                if not self.dry_run:
                    removal.remove()
            except Unreachable:
                raise
            except RetrainError as error:
                self.problems.append(error.message)
            else:
                self.removals.append(removal)

    @contextmanager
    def collecting_problems(self, part: str) -> Iterator[None]:
        """Collect an error of one part, so that the other parts are still pruned."""
        try:
            yield
        except (RetrainError, OSError) as error:
            self.problems.append(f"{part}: {error.message if isinstance(error, RetrainError) else error}")


def prune(context: Context, registry: Registry, *, dry_run: bool = False) -> Pruned:
    """Remove what is not needed any more; the caller has the night's lock.

    Errors of the store, the registry and the disk are collected in ``Pruned.problems``.
    """
    pruned = Pruned(dry_run)
    # The champion must not change, nor an old challenger be promoted by hand, while references are counted.
    with pruned.collecting_problems("the store"), context.workspace.champion_lock():
        references = References(context, registry)
        pruned.take(retirements(context, references, registry))
        references.count_as_retired({removal.name for removal in pruned.removals})
        unreferenced = UnreferencedSince(context)
        pruned.take(store_removals(context, references, unreferenced))
        with pruned.collecting_problems("parts of tables"):
            pruned.take(part_removals(context, unreferenced))
        pruned.take(registry_removals(registry, unreferenced))
        if not dry_run:
            unreferenced.save()
        pruned.waiting = dict(unreferenced.waiting)
    needed: set[str] | None = None
    with pruned.collecting_problems("fetched images"):
        evaluations = References(context, registry).rescored_evaluations()
        tables = (context.records.load_table(evaluation.predictions) for evaluation in evaluations)
        needed = {sha256 for table in tables for sha256 in table["sha256"]}
    with pruned.collecting_problems("this machine"):
        gone = {removal.name for removal in pruned.removals}
        pruned.take(local_removals(context, needed, gone))
    return pruned


def tidy(context: Context) -> None:
    """Prune at the end of a night."""
    _automatically(context, lambda: prune(context, Registry(context.settings)))


def tidy_here(context: Context) -> None:
    """Prune the caches of a machine that only trains; a night that runs on the same home folder prunes them itself."""

    def caches() -> Pruned:
        pruned = Pruned()
        with suppress(NightRunning), context.workspace.night_lock():
            pruned.take(local_removals(context, None, ()))
        return pruned

    _automatically(context, caches)


def _automatically(context: Context, work: Callable[[], Pruned]) -> None:
    """Prune where the settings say so; any failure is a warning."""
    if not context.settings.prune.automatic:
        return
    try:
        pruned = work()
    except Exception as error:
        log.warning("not pruned: %s: %s", type(error).__name__, error)
        return
    for problem in pruned.problems:
        log.warning("not pruned: %s", problem)
    if pruned.removals:
        log.info("pruned %s things, %.1f MB", f"{len(pruned.removals):,}", pruned.size / 1e6)
