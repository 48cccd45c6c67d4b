"""The field's alarm: how often it is false in a year, and after how many patients a drop is noticed.

    python -m benchmarks.field [--lines 200] [--cells 4] [--patients 60 140 200]

Models are drawn as equal trainings on real cells are (benchmarks/populations.py): the promise from so many patients,
the field from up to 1,000 others by the same model, or by one that is worse by 2 or 5 points in sensitivity or
specificity, from the first patient or from the 201st on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.populations import RandomCalls, equal_models, exact
from validation.statistics.field import PATIENTS_A_YEAR, summarise_field

LATER = 200
DROPS = {
    "nothing": (0.0, 0.0),
    "sensitivity 2": (-0.02, 0.0),
    "sensitivity 5": (-0.05, 0.0),
    "specificity 2": (0.0, -0.02),
    "specificity 5": (0.0, -0.05),
}


def tallies(models: RandomCalls, rng: np.random.Generator, patients: int, shifts: tuple[float, float]) -> Any:
    """Return the tallies of patients drawn with replacement, float [patients, 4]."""
    who = rng.integers(0, models.cells.shape[1], patients)
    right, cells = models.calls(rng, who, shifts), models.cells.sum(axis=2)
    return np.stack([right[0], cells[0][who], right[1], cells[1][who]], axis=1).astype(float)


def alarms(models: RandomCalls, patients: int, drop: tuple[float, float], start: int, lines: int) -> list[int]:
    """Return after how many patients of the drop the alarm came, for each line with one in time and not before."""
    found, shifts = [], models.shifts(drop)
    for line in range(lines):
        rng = np.random.default_rng([patients, start, line])
        promised = tallies(models, rng, patients, (0.0, 0.0))
        before = tallies(models, rng, start, (0.0, 0.0))
        field = np.concatenate([before, tallies(models, rng, PATIENTS_A_YEAR - start, shifts)])
        summary = summarise_field(promised, field)
        first = min((r.alarm for r in (summary.sensitivity, summary.specificity) if r.alarm is not None), default=None)
        if first is not None and (first > start or drop == (0.0, 0.0)):
            found.append(first - start)
    return found


def table(lines: int, times: int, patients: Sequence[int]) -> str:
    """Return what is printed: Markdown."""
    models = equal_models()
    models = replace(models, cells=models.cells * times)
    out = [
        "| promised by | points lost | from patient | noticed within 1,000, % | median patients |",
        "|---|---|---|---|---|",
    ]
    for number in patients:
        for name, drop in DROPS.items():
            for start in (0, LATER) if any(drop) else (0,):
                found = alarms(models, number, drop, start, lines)
                low, high = exact(len(found), lines)
                # Lines without an alarm waited longer than any other.
                waits = sorted([*found, *[PATIENTS_A_YEAR + 1] * (lines - len(found))])
                median = waits[lines // 2]
                out.append(
                    f"| {number} | {name} | {start + 1} | {100 * len(found) / lines:.1f} "
                    f"({100 * low:.1f}-{100 * high:.1f}) | {median if median <= PATIENTS_A_YEAR else 'more'} |"
                )
    return "\n".join(out)


def main() -> None:
    """Simulate and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=200)
    parser.add_argument("--cells", type=int, default=4)
    parser.add_argument("--patients", type=int, nargs="+", default=[60, 140, 200])
    asked = parser.parse_args()
    started = time.monotonic()
    print(table(asked.lines, asked.cells, asked.patients))
    print(f"\n{asked.lines} lines each, {asked.cells} times the cells, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
