"""The ledger of looks at the holdout: each is written before its result is known and spends its share of one budget."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime

from infra.store.keys import OURS, look_key
from tasks.context import Context
from validation.digest import digest
from validation.errors import LedgerSpent, RetrainError, StoreUnreachable
from validation.gate import level_of_look
from validation.records import Look

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LedgerEntry:
    """One stored look; None for a damaged one, which counts as spent, on an unknown pair."""

    key: str
    number: int
    look: Look | None

    def cost(self, level: float) -> float:
        """Return its share of the error budget: ``level`` for a damaged look, nothing for a first champion's."""
        return level if self.look is None else self.look.spent


def read_ledger(context: Context, generation: str | None = None) -> list[LedgerEntry]:
    """Return all looks of a generation, or of every one, oldest first: the only reader of looks.

    A damaged or unreadable look is logged as an error and is among them.

    Raises:
        StoreUnreachable: when the store does not answer.
    """
    prefix = f"{OURS}{Look.kind}/" + (f"{generation}/" if generation else "")
    keys = [info.key for info in context.store.list(prefix) if info.key.endswith(".json")]
    entries = [LedgerEntry(key, _number(key), _read(context, key)) for key in keys]
    return sorted(entries, key=lambda entry: (entry.number, entry.key))


def _number(key: str) -> int:
    number = key.rpartition("/")[2].removesuffix(".json").partition("-")[0]
    return int(number) if number.isdecimal() else 0


def _read(context: Context, key: str) -> Look | None:
    try:
        return context.records.load_at(Look, key)
    except RetrainError as error:
        if isinstance(error, StoreUnreachable):
            context.store.check()  # one unreadable object is a damaged look; a store that is gone ends the night
        log.error("a look at the holdout is damaged and counts as spent: %s", error)
        return None


def take_look(context: Context, generation: str, challenger: str, champion: str | None) -> Look:
    """Enter a look into the ledger and return it; the same challenger against the same champion looks once.

    A challenger without a champion to beat is recorded and spends nothing. When two nights take the last look at the
    same time, both may be refused; neither exceeds the budget.

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
        # Other nights may have entered looks meanwhile: what is stored counts.
        entries = read_ledger(context, generation)
        mine = _find(entries, challenger, champion)
        if mine is None:
            raise RetrainError(f"{context.store.uri} did not keep {key}", "no look without a ledger: try again")
    # A night that took the same number may have looked already: each counts as before the other.
    before = [entry for entry in entries if entry.number <= mine.number and entry is not mine]
    _refuse_beyond_budget(context, generation, champion, before, mine.cost(level_of_look(context.settings.gate)))
    return mine.look or _new(context, generation, mine.number, challenger, champion)


def _find(entries: list[LedgerEntry], challenger: str, champion: str | None) -> LedgerEntry | None:
    """Return the pair's own entry: by its content, or by its key when it is damaged."""
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
    """Raise LedgerSpent when a look of ``cost`` after the looks ``before`` exceeds their number or the budget."""
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
            "begin a new generation with `retrain holdout rotate`, or promote by hand",
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
