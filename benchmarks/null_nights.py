"""A year of null nights: how often a challenger that is no better becomes champion; and how soon a better one does.

    python -m benchmarks.null_nights [--years 400] [--lines 200] [--looks 24] [--margin 0.01] [--json FILE]

Models are drawn as equal trainings on real cells are (benchmarks/populations.py): each cell has its chance to be
called right, each model its own effect on each patient. 365 nights a year, one challenger a night, 30 validation and 30
holdout patients; the champion is a model of the same kind. All rules see the same patients, challengers and champion:

- the gate: a look only after a win on validation, 24 looks (by default), then none until a new generation begins;
- "with rotation": whenever the looks are spent a new holdout of as many new patients begins (when data allows it);
- "higher accuracy wins": the better accuracy on the holdout, with the same filter on validation;
- TFX's change threshold on the holdout's balanced accuracy, 0 and 0.01, with the same filter.

After a false promotion the year goes on with that champion. Power: a champion, and every night a challenger truly 1, 2
or 4 points better in both sensitivity and specificity as far as there is room; nights until the first promotion.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gate_methods import interval
from benchmarks.populations import GAINS, RandomCalls, equal_models
from validation.gate import level_of_look
from validation.rules import GateRules
from validation.statistics.paired_tests import flipped_bounds, mean_of, null_variance_bounds, of_shares

NIGHTS = 365
PATIENTS = 30
# The last ones are in force: the defaults, or what the command line asks for.
RULES = [GateRules()]
FLIPS = 2_000


@dataclass(frozen=True)
class Side:
    """Patients, and one model's right calls on them: int [patients] each."""

    positives: Any
    negatives: Any

    def balanced(self, calls: tuple[Any, Any]) -> float:
        """Balanced accuracy."""
        return float(calls[0].sum() / self.positives.sum() + calls[1].sum() / self.negatives.sum()) / 2

    def accuracy(self, calls: tuple[Any, Any]) -> float:
        """Share of right calls."""
        return float((calls[0].sum() + calls[1].sum()) / (self.positives.sum() + self.negatives.sum()))


def passes(side: Side, new: tuple[Any, Any], old: tuple[Any, Any]) -> bool:
    """Whether the gate promotes: better, and not worse by the margins, at one look's level (the floors are met)."""
    rules = RULES[-1]
    level = level_of_look(rules)
    sensitivity = of_shares((new[0] - old[0]).astype(float), side.positives.astype(float))
    specificity = of_shares((new[1] - old[1]).astype(float), side.negatives.astype(float))
    both = mean_of(sensitivity, specificity, (side.positives > 0, side.negatives > 0))
    if sensitivity is None or specificity is None or both is None or both.value <= 0:
        return False
    if null_variance_bounds(sensitivity, level=level)[0] <= -rules.sensitivity_margin:
        return False
    if null_variance_bounds(specificity, level=level)[0] <= -rules.specificity_margin:
        return False
    return flipped_bounds(both, flips=FLIPS, level=level)[0] > 0


class Year:
    """One year's patients and challengers; every rule walks through the same ones with a champion of its own."""

    def __init__(self, models: RandomCalls, rng: np.random.Generator, patients: int, case: str) -> None:
        self.models, self.rng = models, rng
        self.shift = models.shifts(GAINS[case])
        self.who = rng.integers(0, models.cells.shape[1], 2 * patients)
        self.patients = patients
        sizes = models.cells.sum(axis=2)
        self.valid, self.holdout = (
            Side(sizes[0][who], sizes[1][who]) for who in (self.who[:patients], self.who[patients:])
        )
        self.first = self.model((0.0, 0.0), self.who)

    def model(self, shift: tuple[float, float], who: Any) -> tuple[Any, Any]:
        """Draw a model's calls on validation and holdout patients together."""
        return self.models.calls(self.rng, who, shift)

    def challengers(self, nights: int) -> tuple[Any, Any]:
        """Draw a challenger for every night: right calls int [nights, 2 * patients] by class."""
        return self.model(self.shift, np.broadcast_to(self.who, (nights, len(self.who))))

    def halves(self, calls: tuple[Any, Any]) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        """Split a model's calls into those on validation and those on holdout patients."""
        n = self.patients
        return (calls[0][:n], calls[1][:n]), (calls[0][n:], calls[1][n:])


Rule = Callable[[Side, tuple[Any, Any], tuple[Any, Any]], bool]
NAIVE: dict[str, Rule] = {
    "higher accuracy wins": lambda side, new, old: side.accuracy(new) > side.accuracy(old),
    "change threshold 0": lambda side, new, old: side.balanced(new) - side.balanced(old) > 0,
    "change threshold 0.01": lambda side, new, old: side.balanced(new) - side.balanced(old) > 0.01,
}


def walk(year: Year, nights: tuple[Any, Any], rule: Rule, looks: int | None) -> tuple[list[int], int]:
    """Return the nights of a promotion, and how many looks were taken; ``looks`` None: as many as there are nights."""
    champion = year.halves(year.first)
    promoted, taken = [], 0
    for night in range(len(nights[0])):
        if looks is not None and taken >= looks:
            break
        challenger = year.halves((nights[0][night], nights[1][night]))
        if year.valid.balanced(challenger[0]) <= year.valid.balanced(champion[0]):
            continue
        taken += 1
        if rule(year.holdout, challenger[1], champion[1]):
            promoted.append(night + 1)
            champion = challenger
    return promoted, taken


def with_rotation(year: Year, nights: tuple[Any, Any]) -> list[list[int]]:
    """Return for every generation of a year the nights of a promotion; each has a holdout of new patients."""
    champion = year.halves(year.first)
    n, found, taken, begun = year.patients, [[]], 0, 0  # type: ignore[var-annotated]
    side, holdout = year.holdout, {0: champion[1]}
    for night in range(len(nights[0])):
        if taken >= RULES[-1].looks:
            taken, begun = 0, night
            who = year.rng.integers(0, year.models.cells.shape[1], n)
            sizes = year.models.cells.sum(axis=2)
            side = Side(sizes[0][who], sizes[1][who])
            # Both are scored on the new patients; their effects on them are drawn like on any others.
            holdout = {0: year.model((0.0, 0.0), who)}
            found.append([])
        challenger = year.halves((nights[0][night], nights[1][night]))
        if year.valid.balanced(challenger[0]) <= year.valid.balanced(champion[0]):
            continue
        taken += 1
        calls = challenger[1] if begun == 0 else year.model((0.0, 0.0), who)
        if passes(side, calls, holdout[0]):
            found[-1].append(night + 1)
            champion, holdout = challenger, {0: calls}
    return found


def null_years(years: int) -> dict[str, dict[str, Any]]:
    """Return for every rule the years with a false promotion, with the interval, and promotions a year."""
    models = equal_models()
    any_: dict[str, int] = {}
    count: dict[str, int] = {}
    generations = false_generations = looks = 0
    for number in range(years):
        year = Year(models, np.random.default_rng([number, 1]), PATIENTS, "+0")
        nights = year.challengers(NIGHTS)
        found = {}
        found["the gate"], taken = walk(year, nights, passes, RULES[-1].looks)
        looks += taken
        rotated = with_rotation(year, nights)
        found["the gate, with rotation"] = [night for one in rotated for night in one]
        generations += len(rotated)
        false_generations += sum(bool(one) for one in rotated)
        found |= {name: walk(year, nights, rule, None)[0] for name, rule in NAIVE.items()}
        for name, promoted in found.items():
            any_[name] = any_.get(name, 0) + bool(promoted)
            count[name] = count.get(name, 0) + len(promoted)
        if number % 50 == 49:
            print(f"  {number + 1} null years", file=sys.stderr, flush=True)
    rows = {name: _share(any_[name], years) | {"promotions_a_year": count[name] / years} for name in any_}
    rows["the gate, with rotation: generations"] = _share(false_generations, generations) | {
        "promotions_a_year": false_generations / years
    }
    rows["the gate"]["looks_a_year"] = looks / years
    return rows


def _share(found: int, of: int) -> dict[str, Any]:
    low, high = interval(found, of)
    return {"found": found, "of": of, "share": found / of, "low": low, "high": high}


def power(lines: int) -> list[dict[str, Any]]:
    """Return for each gain and number of holdout patients how soon a truly better challenger is promoted."""
    models = equal_models()
    rows = []
    for patients in (30, 60, 120):
        for case in ("+1", "+2", "+4"):
            when, first = [], 0
            for number in range(lines):
                year = Year(models, np.random.default_rng([number, patients, 2]), patients, case)
                # 24 looks take as many nights or a few more, since most challengers win on validation.
                promoted, _ = walk_to_first(year, year.challengers(120))
                when.append(promoted)
                first += promoted == 1
            found = [night for night in when if night is not None]
            median = float(np.median([night if night is not None else np.inf for night in when]))
            rows.append(
                {"patients": patients, "gain": case, "median_nights": median if np.isfinite(median) else None,
                 **_share(len(found), lines), "first_night": first / lines}
            )  # fmt: skip
        print(f"  power with {patients} patients", file=sys.stderr, flush=True)
    return rows


def walk_to_first(year: Year, nights: tuple[Any, Any]) -> tuple[int | None, int]:
    """Return the night of the first promotion within the looks of a generation, or None, and the looks taken."""
    champion = year.halves(year.first)
    taken = 0
    for night in range(len(nights[0])):
        challenger = year.halves((nights[0][night], nights[1][night]))
        if year.valid.balanced(challenger[0]) <= year.valid.balanced(champion[0]):
            continue
        if taken >= RULES[-1].looks:
            break
        taken += 1
        if passes(year.holdout, challenger[1], champion[1]):
            return night + 1, taken
    return None, taken


def tables(nulls: dict[str, dict[str, Any]], powers: list[dict[str, Any]]) -> str:
    """Return what is printed: Markdown."""
    out = ["| rule | with a false promotion | 95% interval | false promotions a year |", "|---|---|---|---|"]
    out += [
        f"| {name} | {row['found']} of {row['of']} ({100 * row['share']:.1f}%) | {100 * row['low']:.1f}-"
        f"{100 * row['high']:.1f}% | {row['promotions_a_year']:.2f} |"
        for name, row in nulls.items()
    ]
    out.append(f"\nlooks taken a year without rotation: {nulls['the gate']['looks_a_year']:.1f} of {RULES[-1].looks}\n")
    out += ["| truly better by | holdout patients | within the looks | 95% interval | median nights | first night |"]
    out += ["|---|---|---|---|---|---|"]
    for row in powers:
        median = f"{row['median_nights']:.0f}" if row["median_nights"] else "not within"
        out.append(
            f"| {row['gain']} | {row['patients']} | {100 * row['share']:.0f}% | {100 * row['low']:.0f}-"
            f"{100 * row['high']:.0f}% | {median} | {100 * row['first_night']:.0f}% |"
        )
    return "\n".join(out)


def main() -> None:
    """Simulate, print the tables, and write all figures if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--years", type=int, default=400)
    parser.add_argument("--lines", type=int, default=200)
    parser.add_argument("--looks", type=int, default=RULES[0].looks)
    parser.add_argument("--margin", type=float, default=RULES[0].sensitivity_margin)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    RULES.append(GateRules(looks=asked.looks, sensitivity_margin=asked.margin, specificity_margin=asked.margin))
    started = time.monotonic()
    nulls, powers = null_years(asked.years), power(asked.lines)
    print(tables(nulls, powers))
    print(f"\n{asked.years} years, {asked.lines} lines of nights each, {time.monotonic() - started:.0f} s")
    if asked.json:
        asked.json.write_text(json.dumps({"null": nulls, "power": powers}, indent=1))


if __name__ == "__main__":
    main()
