"""The ledger of looks: each is decided before its result is known and spends its share of a year's error budget.

A look is decided by one write into the registry that exactly one writer can win (``Registry.put_if_absent``), as an
entry of the history is; the store has a copy, and so has the evaluation that came of it. What counts is the union of
the three: a look that is missing, damaged or edited in one of them is spent, and named.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from infra.registry.registry import Registry
from infra.store.keys import OURS, look_key
from tasks.context import Context
from tasks.nights import load_all
from validation.digest import digest
from validation.errors import LedgerSpent, RetrainError, StoreUnreachable
from validation.gate import level_of_look
from validation.records import Evaluation, Look
from validation.rules import GateRules

log = logging.getLogger(__name__)

ENTRY = "look."
YEAR = timedelta(days=365)
REGISTRY, STORE, EVALUATION = "the registry", "the store", "its evaluation"


@dataclass(frozen=True)
class LedgerEntry:
    """One look, from all places that have it; ``look`` is None where no place can be read: it counts as spent.

    ``problem`` says where it is missing, damaged or different; empty if nowhere.
    """

    number: int
    pair: str
    look: Look | None
    spent: float | None
    problem: str = ""

    def cost(self, level: float) -> float:
        """Return its share of the error budget: the most that a place says, ``level`` if none can be read."""
        return level if self.spent is None else self.spent

    def counts(self, now: datetime) -> bool:
        """Whether it shares the budget of the 365 days before ``now``; a look without a date always does."""
        return self.look is None or self.look.looked_at > now - YEAR


def read_ledger(context: Context, registry: Registry) -> list[LedgerEntry]:
    """Return all looks, oldest first: the only reader of looks. Looks with a problem are logged as errors.

    Looks at a holdout, by version 0.1, belong to another budget and are not among them.

    Raises:
        StoreUnreachable, RegistryUnreachable: when one does not answer.
    """
    found: dict[tuple[int, str], dict[str, Look | None]] = {}
    for place, number, pair, look in (*_decided(registry), *_copies(context), *_evaluated(context)):
        found.setdefault((number, pair), {})[place] = look
    # A damaged entry of the registry does not say whose it is: it is that of its number.
    named = {number: pair for number, pair in reversed(found) if pair}
    for number in [number for number, pair in found if not pair and number in named]:
        found[number, named[number]] |= found.pop((number, ""))
    level = level_of_look(context.settings.gate)
    entries = [_entry(number, pair, places, level) for (number, pair), places in sorted(found.items())]
    for entry in entries:
        if entry.problem:
            log.error("look %d counts as spent: %s", entry.number, entry.problem)
    return entries


def take_look(context: Context, registry: Registry, challenger: str, champion: str | None) -> Look:
    """Decide a look and return it; the same challenger against the same champion looks once a year.

    Both are named by the SHA-256 of their model files. A challenger without a champion to beat is recorded and spends
    nothing.

    Raises:
        LedgerSpent: when all looks of the last 365 days have been taken.
    """
    level, pair = level_of_look(context.settings.gate), pair_of(challenger, champion)
    while True:
        entries = read_ledger(context, registry)
        number = max((entry.number for entry in entries), default=0) + 1
        now = datetime.now(UTC)
        # One that no longer counts is no longer paid for, whoever wrote it.
        mine = next((entry for entry in entries if entry.pair == pair and entry.counts(now)), None)
        if mine is not None and mine.look is not None:
            repair_looks(context, registry)
            return mine.look
        # A clock that was set back must not let a look expire early: times never decrease.
        times = [entry.look.looked_at for entry in entries if entry.look and not entry.problem]
        look = Look(
            number=number,
            challenger=challenger,
            champion=champion,
            spent=level if champion is not None else 0.0,
            looked_at=max([now, *times]),
        )
        if mine is not None:
            return look.model_copy(update={"number": mine.number})
        if champion is not None:
            _refuse_beyond_budget(context.settings.gate, entries, level)
        text = look.model_dump_json(indent=2)
        # Whoever loses the number reads again, the winner's look included.
        if registry.put_if_absent(f"{ENTRY}{number:06d}", text) == text:
            context.store.put(look_key(number, pair), text.encode())
            repair_looks(context, registry)
            return look


def repair_looks(context: Context, registry: Registry) -> None:
    """Write the store's missing copies again; each is named in the log."""
    stored = {info.key for info in context.store.list(f"{OURS}{Look.kind}/")}
    for _, number, pair, look in _decided(registry):
        if look is not None and (key := look_key(number, pair)) not in stored:
            context.store.put(key, look.model_dump_json(indent=2).encode())
            log.error("look %d was not in %s: %s is written again", number, context.store.uri, key)


def restore_looks(context: Context, registry: Registry) -> None:
    """Write the looks into a registry that has lost them, as the store and the evaluations have them."""
    for entry in read_ledger(context, registry):
        if entry.look is not None and entry.problem == f"{REGISTRY} has none":
            registry.put_if_absent(f"{ENTRY}{entry.number:06d}", entry.look.model_dump_json(indent=2))


def counted(entries: Sequence[LedgerEntry], level: float, now: datetime) -> list[LedgerEntry]:
    """Return the looks that share the budget of the 365 days before ``now`` and cost something."""
    return [entry for entry in entries if entry.counts(now) and entry.cost(level) > 0]


def next_free(entries: Sequence[LedgerEntry], rules: GateRules, now: datetime) -> datetime | None:
    """Return when the budget allows the next look: ``now`` or later, or None while unreadable looks use it up."""
    level = level_of_look(rules)
    ends = sorted(entry.look.looked_at + YEAR for entry in counted(entries, level, now) if entry.look)
    for moment in (now, *ends):
        costs = [entry.cost(level) for entry in counted(entries, level, moment)]
        # The level of a look changes with the settings, so their number alone would not keep the budget.
        if len(costs) < rules.looks and sum(costs) + level <= rules.error_budget * (1 + 1e-9):
            return moment
    return None


def pair_of(challenger: str, champion: str | None) -> str:
    """Return the name of a pair of models in the ledger."""
    return digest(challenger, champion)[:16]


def _decided(registry: Registry) -> Iterable[tuple[str, int, str, Look | None]]:
    for number, text in registry.entries_with_prefix(ENTRY).items():
        try:
            look = Look.model_validate_json(text)
            if look.number != int(number):
                raise ValueError(number)
        except ValueError:
            yield REGISTRY, int(number) if number.isdecimal() else 0, "", None
        else:
            yield REGISTRY, look.number, pair_of(look.challenger, look.champion), look


def _copies(context: Context) -> Iterable[tuple[str, int, str, Look | None]]:
    prefix = f"{OURS}{Look.kind}/"
    for info in context.store.list(prefix):
        number, _, pair = info.key.removeprefix(prefix).removesuffix(".json").partition("-")
        if number.isdecimal() and pair and "/" not in pair:
            yield STORE, int(number), pair, _read(context, info.key, int(number), pair)


def _read(context: Context, key: str, number: int, pair: str) -> Look | None:
    try:
        look = context.records.load_at(Look, key)
    except RetrainError as error:
        if isinstance(error, StoreUnreachable):
            context.store.check()  # one unreadable object is a damaged look; a store that is gone ends the night
        return None
    return look if (look.number, pair_of(look.challenger, look.champion)) == (number, pair) else None


def _evaluated(context: Context) -> Iterable[tuple[str, int, str, Look | None]]:
    for evaluation in load_all(context, Evaluation):
        look = evaluation.look
        yield EVALUATION, look.number, pair_of(look.challenger, look.champion), look


def _entry(number: int, pair: str, places: dict[str, Look | None], level: float) -> LedgerEntry:
    problems = [f"{place} has none" for place in (REGISTRY, STORE) if place not in places]
    problems += [f"what {place} has is damaged" for place, look in places.items() if look is None]
    readable = {place: look for place, look in places.items() if look is not None}
    looks = list(readable.values())
    if any(look != looks[0] for look in looks):
        problems.append(f"{' and '.join(readable)} differ")
    newest = max(looks, key=lambda look: look.looked_at, default=None)
    # What is edited or placed by hand may claim to be cheap; a first champion's look is free where it can be read.
    least = level if problems and (len(readable) < len(places) or any(look.champion for look in looks)) else 0.0
    spent = max([least, *(look.spent for look in looks)]) if looks else None
    return LedgerEntry(number, pair, newest, spent, "; ".join(problems))


def _refuse_beyond_budget(rules: GateRules, entries: list[LedgerEntry], level: float) -> None:
    """Raise LedgerSpent when one more look of ``level`` exceeds the number of looks or the budget of a year."""
    now = datetime.now(UTC)
    free = next_free(entries, rules, now)
    if free == now:
        return
    costs = [entry.cost(level) for entry in counted(entries, level, now)]
    when = f"the next look is free on {free:%Y-%m-%d}" if free else "looks that cannot be read use it up"
    raise LedgerSpent(
        f"{len(costs)} looks were taken in the last 365 days, {rules.looks} are allowed, and "
        f"{sum(costs):.4f} of the error budget {rules.error_budget:g} is spent; {when}",
        "wait, or promote by hand; `retrain looks` lists them",
    )
