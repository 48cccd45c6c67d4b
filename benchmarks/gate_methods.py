"""Which test the gate should use, one look at a time; and which looks are not taken.

    python -m benchmarks.gate_methods [--sets 10000] [--looks 200]

Over five populations of patients (benchmarks/populations.py): real calls of two models of one recipe and of two
recipes, models drawn as ten equal trainings on real cells agree (with the cells of a quarter of the set, and with four
times as many), and made-up patients. All tests are one-sided, at the level of one of 24 looks. Nulls: equal models, and
a trade of 1.5 points of sensitivity for specificity; for "not worse" a sensitivity worse by exactly the margin of 1 or
3 points. Shown are the worst population of a null, in % with a 95% interval, and the mean population's power.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from scipy.special import expit, logit, ndtri
from scipy.stats import t

from benchmarks.populations import GAINS, FixedCalls, RandomCalls, Sets, equal_models, exact, simulated
from validation.gate import could_pass, judge, level_of_look
from validation.records import Verdict
from validation.rules import GateRules
from validation.statistics.metrics import Scored, compare, summarise
from validation.statistics.paired_tests import MOST_GAIN, SEED, UNSEEN

RULES = GateRules()
LEVEL = level_of_look(RULES)
Z = -float(ndtri(LEVEL))
PATIENTS = (20, 40, 60, 100, 140, 200)
FEW = (10, 20, 30, 40, 60)
FLIPS = 4_000
Test = Callable[[Any, Any], Any]


def populations() -> tuple[FixedCalls | RandomCalls, ...]:
    """Return where sets of patients are drawn from."""
    real = equal_models()
    more = replace(real, cells=real.cells * 4, name="real cells, four times as many")
    return FixedCalls("same recipe"), FixedCalls("other recipe"), real, more, simulated()


def above(x: Any, squares: Any = 0.0) -> Any:
    """Return whether sums of contributions [sets, patients] are above 0 by the variance under the bound."""
    count = (x != 0).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return x.sum(axis=1) > Z * np.sqrt(((x**2).sum(axis=1) + squares / count) * count / (count - 1))


def uncapped(x: Any, _: Any) -> Any:
    """Variance under the bound (Obuchowski 1998), in force before."""
    return above(x)


def capped(x: Any, shares: Any, margin: float) -> Any:
    """Variance under the bound with capped gains and what is not seen, in force."""
    count = (shares > 0).sum(axis=1, keepdims=True)
    most = MOST_GAIN * np.sqrt(shares / count)
    return above(np.minimum(x - margin * shares, most) + margin * shares, UNSEEN**2)


def flips(x: Any, _: Any) -> Any:
    """Sign flips, in force for superiority."""
    chosen = (np.random.default_rng(SEED).random((FLIPS, x.shape[1])) < 0.5).astype(float)
    found = np.concatenate([((chosen @ part.T) <= 1e-12).sum(axis=0) for part in np.array_split(x, 1 + len(x) // 500)])
    return found <= int(LEVEL * (FLIPS + 1) + 1e-9) - 1


def jackknife(x: Any, shares: Any) -> Any:
    """Leaving out each patient (CR3), Student's with the effective patients' degrees of freedom."""
    left = (x - x.sum(axis=1, keepdims=True) * shares) / (1 - shares)
    freedom = np.maximum(1, 1 / (shares**2).sum(axis=1) - 1)
    error = np.sqrt((left**2).sum(axis=1))
    return (error > 0) & (x.sum(axis=1) > t.isf(LEVEL, freedom) * error)


def sensitivity(sets: Sets, margin: float) -> tuple[Any, Any]:
    """Return contributions to "sensitivity not worse" and shares of the cells, each [sets, patients]."""
    cells = sets.positives / sets.positives.sum(axis=1, keepdims=True)
    gained = (sets.challenger[0] - sets.champion[0]) / sets.positives.sum(axis=1, keepdims=True)
    return gained + margin * cells, cells


def balanced(sets: Sets) -> tuple[Any, Any]:
    """Return contributions to a difference of balanced accuracy and shares of it, each [sets, patients]."""
    one, shares = sensitivity(sets, 0.0)
    total = sets.negatives.sum(axis=1, keepdims=True)
    return (one + (sets.challenger[1] - sets.champion[1]) / total) / 2, (shares + sets.negatives / total) / 2


def table(sets: int) -> str:
    """Return what is printed of single tests: Markdown."""
    out = [
        "| question | test | " + " | ".join(f"{n} patients" for n in PATIENTS) + " |",
        "|---|---|" + "---|" * len(PATIENTS),
    ]
    for name, case, margin in (
        ("null: equal", "+0", None),
        ("null: a trade", "trade", None),
        ("null: worse by 1, margin 1", "sens-1", 0.01),
        ("null: worse by 3, margin 3", "sens-3", 0.03),
        *((f"not worse at {case}, margin 1", case, 0.01) for case in ("+0", "+1", "+2", "+4")),
    ):
        null = name.startswith("null")
        tests: dict[str, Test] = {"sign flips": flips, "variance under the bound": uncapped, "jackknife": jackknife}
        if margin is not None:
            tests["variance, capped gains, unseen"] = partial(capped, margin=margin)
        rows: dict[str, list[str]] = {test: [] for test in tests}
        for patients in PATIENTS:
            found: dict[str, list[float]] = {test: [] for test in tests}
            for number, population in enumerate(populations()):
                if case == "sens-3" and isinstance(population, FixedCalls):
                    continue
                rng = np.random.default_rng([patients, number])
                drawn = population.draw(rng, sets if null else sets // 10, patients, case)
                x, shares = balanced(drawn) if margin is None else sensitivity(drawn, margin)
                for test, passes in tests.items():
                    found[test].append(float(np.mean(passes(x, shares))))
            for test, shown in found.items():
                if null:
                    low, high = exact(round(max(shown) * sets), sets)
                    rows[test].append(f"{100 * max(shown):.2f} ({100 * low:.2f}-{100 * high:.2f})")
                else:
                    rows[test].append(f"{100 * np.mean(shown):.0f}")
        out += [f"| {name} | {test} | " + " | ".join(cells) + " |" for test, cells in rows.items()]
    return "\n".join(out)


def cells_of(models: RandomCalls, rng: np.random.Generator, patients: int, case: str) -> tuple[Scored, Scored]:
    """Return a challenger's and a champion's calls, as scores, on every cell of patients drawn with replacement."""
    who = rng.integers(0, models.cells.shape[1], patients)
    parts: list[list[Any]] = [[], [], [], []]
    shifts = [models.shifts(GAINS[name]) for name in (case, "+0")]
    for side in (0, 1):
        owner, kind = (
            np.concatenate(p) for p in zip(*(_kinds(models.cells[side, w], n) for n, w in enumerate(who)), strict=True)
        )
        parts[0].append(np.full(len(owner), side == 0))
        parts[1].append(owner)
        for place, shift in enumerate(shifts):
            effect = rng.normal(0, models.spread[side], patients)[owner] + shift[side]
            right = rng.random(len(owner)) < expit(logit(np.asarray(models.chances[side]))[kind] + effect)
            parts[2 + place].append((right == (side == 0)).astype(float))
    labels, owner, new, old = (np.concatenate(part) for part in parts)
    return Scored(labels, new, owner, 0.5), Scored(labels, old, owner, 0.5)


def _kinds(counts: Any, patient: int) -> tuple[Any, Any]:
    return np.full(counts.sum(), patient), np.repeat(np.arange(len(counts)), counts)


def untaken(looks: int) -> str:
    """Return what is printed of looks that are not taken, for challengers that are 2 points better: Markdown."""
    out = ["| patients | not taken, % | promoted, % of those taken | of those not taken |", "|---|---|---|---|"]
    models = populations()[2]
    assert isinstance(models, RandomCalls)
    for patients in FEW:
        rng, taken, passed = np.random.default_rng(patients), np.zeros(looks, bool), np.zeros(looks, bool)
        for look in range(looks):
            new, old = cells_of(models, rng, patients, "+2")
            taken[look] = could_pass(new, old, RULES).verdict is Verdict.PROMOTED
            differences = compare(new, old, resamples=2_000, level=LEVEL)
            rules = RULES.model_copy(update={"min_auc": 0.0, "min_sensitivity": 0.0, "min_specificity": 0.0})
            passed[look] = judge(summarise(new), differences, rules).verdict is Verdict.PROMOTED
        of_taken = f"{100 * passed[taken].mean():.1f}" if taken.any() else "none"
        of_others = f"{100 * passed[~taken].mean():.1f}" if not taken.all() else "none"
        out.append(f"| {patients} | {100 * (1 - taken.mean()):.1f} | {of_taken} | {of_others} |")
    return "\n".join(out)


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=10_000)
    parser.add_argument("--looks", type=int, default=200)
    asked = parser.parse_args()
    started = time.monotonic()
    print(table(asked.sets), untaken(asked.looks), sep="\n\n")
    print(f"\n{asked.sets} sets of patients, {asked.looks} looks, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
