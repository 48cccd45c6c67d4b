"""Unneeded objects of the store and the registry: marked from the records (references.py), then swept.

A record goes before its tables and files, and a model file before its candidate's other files, so that whatever is
half removed shows as a missing record or a missing model file. After a kill at any point, everything is marked again.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from infra.registry.registry import Registry
from infra.store.base import ObjectInfo
from infra.store.keys import MANIFEST, OURS, PARTS, record_key, report_key
from tasks.context import Context
from tasks.pruning.references import REMOVABLE, THREADS, Needed, References
from tasks.pruning.removal import REGISTRY, STORE, Removal
from tasks.pruning.unreferenced import UnreferencedSince
from validation.errors import ObjectMissing
from validation.records import Candidate, Member

# Records are named by digests; an object with any other name is left alone.
_ID = re.compile(r"[0-9a-f]{24}(?=[./])")


def store_removals(context: Context, references: References, unreferenced: UnreferencedSince) -> Iterator[Removal]:
    """Yield objects that have been unreferenced for long enough, and those that the policy releases."""
    needed = references.needed()
    units: dict[tuple[str, str], list[ObjectInfo]] = defaultdict(list)
    for kind in REMOVABLE:
        for info in context.store.list(f"{OURS}{kind}/"):
            if named := _ID.match(info.key.removeprefix(f"{OURS}{kind}/")):
                units[kind, named[0]].append(info)
    # A page that states that its report was retired stays.
    pages = {report_key(decision) for decision in references.retired}
    for (kind, id_), objects in sorted(units.items()):
        if (kind, id_) in needed.whole:
            continue
        stays = pages | ({record_key(kind, id_)} if (kind, id_) in needed.records else set())
        going = sorted((info for info in objects if info.key not in stays), key=_order)
        if going and (why := _why(kind, id_, needed, unreferenced)) is not None:
            for info in going:
                yield Removal(STORE, info.key, info.size, why, partial(context.store.delete, info.key))


def part_removals(context: Context, unreferenced: UnreferencedSince) -> Iterator[Removal]:
    """Yield parts of tables that no table has named for long enough.

    A night writes parts before the table that names them, and shares those of the table before: what a night on another
    machine is about to name is new, or named already.

    Raises:
        RetrainError: for a table whose list of parts cannot be read, since its parts are then not known.
    """
    named: set[str] = set()
    for kind in REMOVABLE:
        tables = [info.key for info in context.store.list(f"{OURS}{kind}/") if info.key.endswith(MANIFEST)]
        with ThreadPoolExecutor(THREADS) as pool:
            named.update(*pool.map(partial(_parts_of, context), tables))
    for info in context.store.list(PARTS):
        if info.key not in named and unreferenced.is_due(info.key.removeprefix(OURS)):
            yield Removal(
                STORE, info.key, info.size, "a part that no table has", partial(context.store.delete, info.key)
            )


def _parts_of(context: Context, table: str) -> set[str]:
    try:
        return context.records.load_manifest(table).part_keys()
    except ObjectMissing:  # removed meanwhile
        return set()


def registry_removals(registry: Registry, unreferenced: UnreferencedSince) -> Iterator[Removal]:
    """Yield the MLflow runs of killed registrations, with their model files."""
    why = "an MLflow run of what was killed or failed; no version is from it"
    for run in registry.abandoned_runs():
        if unreferenced.is_due(f"run/{run}"):
            yield Removal(REGISTRY, run, 0, why, partial(registry.remove_run, run))


def _why(kind: str, id_: str, needed: Needed, unreferenced: UnreferencedSince) -> str | None:
    """Return why something may go now; None when it has not been unreferenced for long enough."""
    if (kind, id_) not in needed.records:
        return "nothing refers to it" if unreferenced.is_due(f"{kind}/{id_}") else None
    if kind == Member.kind:
        return "files of a member whose candidate is stored and not registered; its record stays"
    if kind == Candidate.kind:
        return "files of a challenger that was decided long ago and never registered; its record stays"
    return "tables that only retired reports needed; the record stays"


def _order(info: ObjectInfo) -> tuple[bool, bool, str]:
    """Sort the record first, then a model file, then the rest."""
    return not info.key.endswith(".json"), not info.key.endswith(".onnx"), info.key
