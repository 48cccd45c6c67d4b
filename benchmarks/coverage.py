"""How often the two-sided 95% intervals of one model hold the truth, for 20 (or --patients) holdout patients.

    python -m benchmarks.coverage [--holdouts 1000] [--patients 20]

Percentile bootstrap (what reports show), the same widened for few patients, and a cluster-robust interval on the logit
scale with Student's n - 1; over patients of very unequal size (benchmarks/populations.py).
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from scipy.special import expit, logit
from scipy.stats import t

from benchmarks.populations import RandomCalls, equal_models, simulated
from validation.statistics.metrics import draws, few_patients

RESAMPLES = 2_000
LEVEL = 0.95


def intervals(right: Any, cells: Any) -> dict[str, tuple[float, float]]:
    """Return a share's intervals by each method; ``right`` and ``cells`` float [patients]."""
    n, share = len(cells), right.sum() / cells.sum()
    w = draws(n, RESAMPLES)
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = np.nanquantile((w @ right) / (w @ cells), [0.025, 0.975])
    wide = few_patients(n, 0.025)
    error = np.sqrt(n / (n - 1) * ((right - share * cells) ** 2).sum()) / cells.sum()
    inside = min(max(share, 0.5 / cells.sum()), 1 - 0.5 / cells.sum())
    half = t.isf(0.025, n - 1) * error / (inside * (1 - inside))
    return {
        "percentile bootstrap": (low, high),
        "widened": (share + (low - share) * wide, share + (high - share) * wide),
        "robust, logit, t(n-1)": (float(expit(logit(inside) - half)), float(expit(logit(inside) + half))),
    }


def measure(models: RandomCalls, holdouts: int, patients: int) -> None:
    """Print the share of intervals that hold the truth."""
    rng = np.random.default_rng(1)
    who = rng.integers(0, models.cells.shape[1], (holdouts, patients))
    calls, sizes, truth = models.calls(rng, who, (0.0, 0.0)), models.cells.sum(axis=2), models.truth((0.0, 0.0))
    for side, name in enumerate(("sensitivity", "specificity")):
        held: dict[str, list[bool]] = {}
        for right, cells in zip(calls[side], sizes[side][who], strict=True):
            for method, (low, high) in intervals(right.astype(float), cells.astype(float)).items():
                held.setdefault(method, []).append(bool(low <= truth[side] <= high))
        shown = ", ".join(f"{method} {100 * np.mean(found):.1f}%" for method, found in held.items())
        print(f"{models.name}, {patients} patients, {name}: {shown}")


def main() -> None:
    """Measure over both kinds of patients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--holdouts", type=int, default=1_000)
    parser.add_argument("--patients", type=int, default=20)
    asked = parser.parse_args()
    for models in (equal_models(), simulated()):
        measure(models, asked.holdouts, asked.patients)


if __name__ == "__main__":
    main()
