"""Where the gate's benchmarks draw patients from: with cells of both classes or of one, and two models' calls on them.

Every population gives tallies alone: cells, and how many of them each model calls right, by patient and by class.
``real_tallies.json`` holds such tallies of real cells (benchmarks/real_tallies.py); no image, no patient's name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, logit
from scipy.stats import beta

TALLIES = Path(__file__).with_name("real_tallies.json")
# What a case adds to sensitivity and specificity. Nulls: "+0" and "trade" of superiority, "sens-1" and "worse" of
# non-inferiority (the latter buys its loss of sensitivity back with specificity).
# Specificity has less room to the top than 4 points, so there sensitivity gives the rest.
GAINS = {
    "+0": (0, 0),
    "trade": (0.015, -0.015),
    "sens-1": (-0.01, 0),
    "worse": (-0.01, 0.024),
    "+1": (0.01, 0.01),
    "+2": (0.02, 0.02),
    "+4": (0.056, 0.024),
}

# Cases of drawn models only: there are no real calls for them in the stored tallies.
MORE = {"sens-3": (-0.03, 0)}


@dataclass(frozen=True)
class Sets:
    """Tallies of many sets of patients, each int [sets, patients]: cells of a class, and each model's right calls."""

    positives: Any
    negatives: Any
    champion: tuple[Any, Any]
    challenger: tuple[Any, Any]


@dataclass(frozen=True)
class FixedCalls:
    """Real calls of two real models; a set is patients drawn with replacement.

    The challenger's thresholds are moved in each class until it is exactly as much better as the case says, over all
    patients, so the null is exactly true for whoever draws from them.
    """

    name: str

    @cached_property
    def _stored(self) -> dict[str, Any]:
        return dict(json.loads(TALLIES.read_text()))

    def draw(self, rng: np.random.Generator, sets: int, patients: int, case: str) -> Sets:
        """Return ``sets`` sets of ``patients`` patients."""
        stored, pair = self._stored, self._stored["pairs"][self.name]
        who = rng.integers(0, len(stored["positives"]), (sets, patients))

        def of(values: list[int]) -> Any:
            return np.array(values)[who]

        return Sets(
            of(stored["positives"]),
            of(stored["negatives"]),
            (of(pair["champion"]["tp"]), of(pair["champion"]["tn"])),
            (of(pair[case]["tp"]), of(pair[case]["tn"])),
        )


@dataclass(frozen=True)
class RandomCalls:
    """Any number of equally good models: a cell has its chance to be called right, a model its effect on a patient.

    ``cells`` int [class, patients, kinds]; ``chances`` float [class, kinds], the chance that a model is right on a
    cell of that kind; ``spread`` [class], the standard deviation of a model's effect on a patient, on the logit scale.
    """

    name: str
    cells: Any
    chances: Any
    spread: tuple[float, float]

    @cached_property
    def _nodes(self) -> tuple[Any, Any]:
        nodes, weights = np.polynomial.hermite_e.hermegauss(41)
        return nodes, weights / weights.sum()

    def truth(self, shifts: tuple[float, float]) -> tuple[float, float]:
        """Return sensitivity and specificity over all patients of a model whose logits are shifted by that much."""
        nodes, weights = self._nodes
        found = []
        for side in (0, 1):
            right = expit(logit(self.chances[side])[:, None] + shifts[side] + self.spread[side] * nodes) @ weights
            kinds = self.cells[side].sum(axis=0)
            found.append(float(kinds @ right / kinds.sum()))
        return found[0], found[1]

    def shifts(self, gains: tuple[float, float]) -> tuple[float, float]:
        """Return the shifts of a model that is better by ``gains`` in sensitivity and specificity (bisection)."""
        base, found = self.truth((0, 0)), []
        for side in (0, 1):
            goal, low, high = min(base[side] + gains[side], 0.9995), -20.0, 20.0
            for _ in range(60):
                middle = (low + high) / 2
                low, high = (middle, high) if self.truth((middle, middle))[side] < goal else (low, middle)
            found.append((low + high) / 2)
        return found[0], found[1]

    def calls(self, rng: np.random.Generator, who: Any, shifts: tuple[float, float]) -> tuple[Any, Any]:
        """Return a model's right calls by class on patients ``who`` int [...]; drawn afresh, patient effect and all."""
        right = []
        for side in (0, 1):
            effect = rng.normal(0, self.spread[side], who.shape) + shifts[side]
            cells = self.cells[side][who]
            total = np.zeros(who.shape, np.int64)
            for kind, chance in enumerate(logit(self.chances[side])):
                if cells[..., kind].any():
                    total += rng.binomial(cells[..., kind], expit(chance + effect))
            right.append(total)
        return right[0], right[1]

    def draw(self, rng: np.random.Generator, sets: int, patients: int, case: str) -> Sets:
        """Return ``sets`` sets of ``patients`` patients."""
        who = rng.integers(0, self.cells.shape[1], (sets, patients))
        sizes = self.cells.sum(axis=2)
        champion, challenger = (self.calls(rng, who, self.shifts((GAINS | MORE)[c])) for c in ("+0", case))
        return Sets(sizes[0][who], sizes[1][who], champion, challenger)


def equal_models() -> RandomCalls:
    """Return what ten trainings on real cells show: how often each cell is called right, and how patients differ."""
    stored = json.loads(TALLIES.read_text())["agreement"]
    sides = [stored[side] for side in ("positive", "negative")]
    return RandomCalls(
        "real cells, equal trainings",
        np.array([side["cells"] for side in sides]),
        np.array([side["chances"] for side in sides]),
        (sides[0]["spread"], sides[1]["spread"]),
    )


def simulated(patients: int = 2_000, seed: int = 7) -> RandomCalls:
    """Return made-up patients as unequal as the public set's: 65 to 702 cells, median near 86, a quarter healthy."""
    rng = np.random.default_rng(seed)
    sizes = np.clip(65 + rng.lognormal(3.0, 1.4, patients), 65, 702).astype(int)
    infected = rng.random(patients) < 0.75
    positives = np.where(infected, rng.binomial(sizes, rng.beta(3, 2, patients)), 0)
    chances = np.array([0.03, 0.2, 0.5, 0.8, 0.95, 0.998])
    cells = []
    for count, common in ((positives, (1, 1, 1.5, 2, 6, 88)), (sizes - positives, (0.5, 0.7, 1, 1.5, 5, 91))):
        # Cells of one patient are alike: some patients have many difficult ones.
        mixes = rng.dirichlet(np.array(common) * 0.25, patients)
        cells.append([rng.multinomial(n, mix) for n, mix in zip(count, mixes, strict=True)])
    return RandomCalls("simulated", np.array(cells), np.stack([chances, chances]), (0.8, 0.8))


def exact(found: int, of: int) -> tuple[float, float]:
    """Return the exact two-sided 95% interval of a share (Clopper & Pearson 1934)."""
    low = beta.ppf(0.025, found, of - found + 1) if found else 0.0
    high = beta.ppf(0.975, found + 1, of - found) if found < of else 1.0
    return float(low), float(high)
