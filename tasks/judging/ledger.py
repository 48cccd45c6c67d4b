"""The ledger of looks at the holdout: each is written before its result is known and spends its share of one budget."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime

from infra.store.keys import OURS, look_key
from tasks.context import Context
from validation.digest import digest
from validation.errors import LedgerSpent, RetrainError
from validation.gate import level_of_look
from validation.records import Look

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LedgerEntry:
    """One stored look. One that cannot be read (``look`` is None) counts as spent: what it was spent on is unknown."""

    key: str
    number: int
    look: Look | None
    problem: str = ""

    def cost(self, level: float) -> float:
        """Its share of the error budget, ``level`` when it cannot be read; a first champion's look costs nothing."""
        return level if self.look is None else self.look.spent


def read_ledger(context: Context, generation: str) -> list[LedgerEntry]:
    """Return all looks of a generation, oldest first. A damaged one is told loudly, and is there all the same."""
    entries = []
    for info in context.store.list(f"{OURS}looks/{generation}/"):
        if not info.key.endswith(".json"):
            continue
        name = info.key.rpartition("/")[2]
        number = name.removesuffix(".json").partition("-")[0]
        at = int(number) if number.isdecimal() else 0
        try:
            entries.append(LedgerEntry(info.key, at, context.records.load_at(Look, info.key)))
        except RetrainError as error:
            log.error("a look at the holdout cannot be read, and counts as spent: %s", error)
            entries.append(LedgerEntry(info.key, at, None, error.message))
    return sorted(entries, key=lambda entry: (entry.number, entry.key))


def take_look(context: Context, generation: str, challenger: str, champion: str | None) -> Look:
    """Enter a look into the ledger and return it; the same challenger against the same champion looks once.

    A first champion is compared with nobody: its look is recorded and spends nothing. Of two nights that take the last
    look at once, both may be refused, and neither looks beyond the budget.

    Raises:
        LedgerSpent: when all looks of this generation have been taken.
    """
    entries = read_ledger(context, generation)
    mine = _find(entries, challenger, champion)
    if mine is None:
        _refuse_beyond_budget(context, generation, champion, entries, level_of_look(context.settings.gate))
        number = max((entry.number for entry in entries), default=0) + 1
        look = _new(context, generation, number, challenger, champion)
        key = look_key(generation, number, _pair(challenger, champion))
        context.store.create(key, look.model_dump_json(indent=2).encode())
        # What counts is what is stored, with all that others have entered meanwhile.
        entries = read_ledger(context, generation)
        mine = _find(entries, challenger, champion)
        if mine is None:
            raise RetrainError(f"{context.store.uri} did not keep {key}", "without a ledger nobody may look: try again")
    # Whoever took the same number at the same moment may have looked already: both count as before the other.
    before = [entry for entry in entries if entry.number <= mine.number and entry is not mine]
    _refuse_beyond_budget(context, generation, champion, before, mine.cost(level_of_look(context.settings.gate)))
    return mine.look or _new(context, generation, mine.number, challenger, champion)


def _find(entries: list[LedgerEntry], challenger: str, champion: str | None) -> LedgerEntry | None:
    """Return the pair's own entry: by what it says, or by its name when it cannot be read."""
    suffix = f"-{_pair(challenger, champion)}.json"
    for entry in entries:
        if entry.look is None and entry.key.endswith(suffix):
            return entry
        if entry.look is not None and (entry.look.challenger, entry.look.champion) == (challenger, champion):
            return entry
    return None


def _refuse_beyond_budget(
    context: Context, generation: str, champion: str | None, before: list[LedgerEntry], cost: float
) -> None:
    """Refuse a look that costs ``cost`` after the looks ``before``: by their number, and by what they have spent."""
    if champion is None:
        return
    rules = context.settings.gate
    costs = [entry.cost(level_of_look(rules)) for entry in before]
    taken = sum(one > 0 for one in costs)
    # The level of a look changes with the settings, so their number alone would not keep the budget.
    if taken >= rules.looks or sum(costs) + cost > rules.error_budget * (1 + 1e-9):
        raise LedgerSpent(
            f"the holdout of generation {generation} has been looked at {taken} times, {rules.looks} are allowed, and "
            f"{sum(costs):.4f} of the error budget {rules.error_budget:g} is spent",
            "begin a new generation with `retrain holdout rotate`, or let a person decide",
        )


def _new(context: Context, generation: str, number: int, challenger: str, champion: str | None) -> Look:
    return Look(
        generation=generation,
        number=max(1, number),
        challenger=challenger,
        champion=champion,
        spent=level_of_look(context.settings.gate) if champion is not None else 0.0,
        looked_at=datetime.now(UTC),
    )


def _pair(challenger: str, champion: str | None) -> str:
    return digest(challenger, champion)[:16]
