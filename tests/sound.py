"""What has to be true of a machine whatever has happened to it: nothing lost, champion valid, history true."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from infra.registry.registry import Registry
from infra.scoring.model_file import ModelFile
from infra.settings.settings import Settings
from tasks.champion.history import history
from tasks.context import Context
from tasks.judging.ledger import read_ledger
from validation.digest import sha256
from validation.records import Candidate, Decision, Night, Promotion


def settings_of(home: Path, **settings: Any) -> Settings:
    """Return a machine's settings; the environment of the test, which would go first, is left out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RETRAIN_HOME", raising=False)
        return Settings(home=home, **settings)


def check_sound(home: Path, **settings: Any) -> list[str]:
    """Check a machine and return the versions that were champion, oldest first.

    What a killed night has begun may be unfinished, as long as the next one finishes it: an entry of the history that
    only the registry has, an alias that is one entry behind.
    """
    given = settings_of(home, **settings)
    context, registry = Context.open(given), Registry(given)
    told = history(context)
    decided = [
        Promotion.model_validate_json(text) for _, text in sorted(registry.entries_with_prefix("history.").items())
    ]
    assert told == decided[: len(told)]
    assert len(decided) - len(told) <= 1
    for before, after in pairwise(decided):
        assert after.version_before == before.version_after
        assert after.at >= before.at
    champion = registry.champion()
    versions = [entry.version_after for entry in decided]
    assert champion is None or champion.version in versions[-2:]
    assert champion is not None or len(decided) <= 1
    if champion is not None:
        # Loaded from the registry and run, as whoever uses it would.
        ModelFile(registry.model_bytes(champion), sha256_expected=champion.model_sha256)
    _check_records(context, registry)
    return versions


def _check_records(context: Context, registry: Registry) -> None:
    """Read every record: a torn one would raise."""
    for kind in (Candidate, Decision, Night):
        for id_ in context.records.ids(kind):
            context.records.load(kind, id_)
    for id_ in context.records.ids(Candidate):
        candidate = context.records.load(Candidate, id_)
        assert sha256(context.store.get(candidate.model_key)) == candidate.model_sha256
    assert all(entry.look is not None for entry in read_ledger(context, registry))


def inputs(home: Path) -> dict[str, bytes]:
    """Return all cells of a machine's store, which nothing may change."""
    labeled = home / "store" / "labeled"
    return {path.relative_to(labeled).as_posix(): path.read_bytes() for path in labeled.rglob("*") if path.is_file()}


def last_night(home: Path, **settings: Any) -> Night:
    """Return the night that a machine has finished last."""
    night = Context.open(settings_of(home, **settings)).records.latest("night", Night)
    assert night is not None
    return night
