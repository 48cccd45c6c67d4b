"""What the store and the registry keep that nobody needs: marked from the records (references.py), then swept.

A record goes before its tables and files, and a model file before its candidate's other files: whoever finds half of
something finds a record that is not there, or one whose file is. Killed anywhere, everything is marked anew.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from functools import partial

from infra.registry.registry import Registry
from infra.store.base import ObjectInfo
from infra.store.keys import OURS, record_key, report_key
from tasks.context import Context
from tasks.pruning.references import REMOVABLE, Needed, References
from tasks.pruning.removal import REGISTRY, STORE, Removal
from tasks.pruning.unreferenced import UnreferencedSince
from validation.records import Candidate

# Records are named by digests; whatever is named otherwise is not ours to judge.
_ID = re.compile(r"[0-9a-f]{24}(?=[./])")


def store_removals(context: Context, references: References, orphans: UnreferencedSince) -> Iterator[Removal]:
    """Yield what nothing in the store has referred to for long enough, and what the policy lets go of the rest."""
    needed = references.needed()
    units: dict[tuple[str, str], list[ObjectInfo]] = defaultdict(list)
    for kind in REMOVABLE:
        for info in context.store.list(f"{OURS}{kind}/"):
            if (named := _ID.match(info.key.removeprefix(f"{OURS}{kind}/"))) is not None:
                units[kind, named[0]].append(info)
    # A page that says that its report was retired.
    pages = {report_key(decision) for decision in references.retired}
    for (kind, id_), found in sorted(units.items()):
        if (kind, id_) in needed.whole:
            continue
        stays = {record_key(kind, id_)} if (kind, id_) in needed.records else set()
        going = sorted((info for info in found if info.key not in stays | pages), key=_order)
        if going and (why := _why(kind, id_, needed, orphans)) is not None:
            for info in going:
                yield Removal(STORE, info.key, info.size, why, partial(context.store.delete, info.key))


def registry_removals(registry: Registry, orphans: UnreferencedSince) -> Iterator[Removal]:
    """Yield the runs that killed registrations left in MLflow, with the model files in them."""
    for run in registry.abandoned_runs():
        if orphans.is_due(f"run/{run}"):
            yield Removal(REGISTRY, run, 0, "an MLflow run that was killed; no version is from it",
                          partial(registry.remove_run, run))  # fmt: skip


def _why(kind: str, id_: str, needed: Needed, orphans: UnreferencedSince) -> str | None:
    """Return why something may go now; None when it has not been without use for long enough."""
    if (kind, id_) not in needed.records:
        return "nothing refers to it" if orphans.is_due(f"{kind}/{id_}") else None
    if kind == Candidate.kind:
        return "files of a challenger that was decided long ago and never registered; its record stays"
    return "tables that only reports needed which were retired; the record stays"


def _order(info: ObjectInfo) -> tuple[bool, bool, str]:
    """The record first, then a model file, then the rest."""
    return not info.key.endswith(".json"), not info.key.endswith(".onnx"), info.key
