"""Which test the gate should use: how often each finds a difference that is not there, and one that is.

    python -m benchmarks.gate_methods [--holdouts 4000] [--json FILE]

Over four populations of patients (benchmarks/populations.py) and 10, 20, 40 and 80 holdout patients. Nulls: two equal
models ("+0"), a trade of 1.5 points of sensitivity for specificity ("trade"), and, for non-inferiority with a margin of
1 point, a sensitivity that is worse by exactly the margin. Bootstraps cost more, so they get half as many holdouts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import beta

from benchmarks.gate_tests import Parts, Question, bootstraps, rejections
from benchmarks.populations import FixedCalls, Holdouts, RandomCalls, equal_models, simulated

LEVELS = (0.05, 0.01, 0.002)
PATIENTS = (10, 20, 40, 80)
SUPERIOR: Question = ("balanced", 0.0)
NOT_WORSE: Question = ("sensitivity", -0.01)
QUESTIONS = {
    "superiority, equal models": ("+0", SUPERIOR),
    "superiority, a trade": ("trade", SUPERIOR),
    "non-inferiority, worse by the margin": ("sens-1", NOT_WORSE),
    "power, superiority +1": ("+1", SUPERIOR),
    "power, superiority +2": ("+2", SUPERIOR),
    "power, superiority +4": ("+4", SUPERIOR),
    "power, non-inferiority, equal models": ("+0", NOT_WORSE),
    "power, non-inferiority, +1": ("+1", NOT_WORSE),
    "power, non-inferiority, +2": ("+2", NOT_WORSE),
}
BLOCK = 500
# One of the 24 looks that share an error budget of 5%: the gate's own level by default.
LOOK = 0.05 / 24
THREE: tuple[Question, ...] = (SUPERIOR, NOT_WORSE, ("specificity", -0.01))
CASES = ("+0", "trade", "worse", "+1", "+2", "+4")
# Whole gates: by which test a challenger is better, and by which it is not worse.
GATES = {
    "bootstrap": ("bootstrap", "bootstrap"),
    "bootstrap widened (before)": ("bootstrap widened", "bootstrap widened"),
    "sign flips": ("sign flips", "sign flips"),
    "Obuchowski": ("Obuchowski", "Obuchowski"),
    "robust CR2, t(BM)": ("robust CR2, t(BM)", "robust CR2, t(BM)"),
    "robust CR2, t(IK)": ("robust CR2, t(IK)", "robust CR2, t(IK)"),
    "sign flips + Obuchowski (kept)": ("sign flips", "Obuchowski"),
}


def populations() -> tuple[FixedCalls | RandomCalls, ...]:
    """Return where holdouts are drawn from."""
    return FixedCalls("same recipe"), FixedCalls("other recipe"), equal_models(), simulated()


def interval(found: int, of: int) -> tuple[float, float]:
    """Return the exact two-sided 95% interval of a share (Clopper & Pearson 1934)."""
    low = beta.ppf(0.025, found, of - found + 1) if found else 0.0
    high = beta.ppf(0.975, found + 1, of - found) if found < of else 1.0
    return float(low), float(high)


def measure(holdouts: int) -> list[dict[str, Any]]:
    """Return one row for each population, number of patients, question, method and level."""
    rows = []
    for population in populations():
        for patients in PATIENTS:
            for name, (case, question) in QUESTIONS.items():
                rng = np.random.default_rng([patients, list(QUESTIONS).index(name)])
                drawn = population.draw(rng, holdouts, patients, case)
                for method, found in _all(drawn, question, holdouts).items():
                    rows += [
                        {"population": population.name, "patients": patients, "question": name, "method": method,
                         "level": level, "found": int(found[i].sum()), "of": int(found.shape[1])}
                        for i, level in enumerate(LEVELS)
                    ]  # fmt: skip
            print(f"  {population.name}, {patients} patients", file=sys.stderr, flush=True)
    return rows


def measure_gates(holdouts: int) -> list[dict[str, Any]]:
    """Return one row for each population, number of patients, case and gate: how often all three questions pass."""
    rows = []
    for population in populations():
        for patients in PATIENTS:
            for number, case in enumerate(CASES):
                rng = np.random.default_rng([patients, number, 99])
                drawn = population.draw(rng, holdouts, patients, case)
                answers = [_all(drawn, question, holdouts, (LOOK,)) for question in THREE]
                for gate, (superior, not_worse) in GATES.items():
                    n = min(answers[0][superior].shape[1], answers[1][not_worse].shape[1])
                    passed = answers[0][superior][0, :n] & answers[1][not_worse][0, :n] & answers[2][not_worse][0, :n]
                    rows.append(
                        {"population": population.name, "patients": patients, "question": case, "method": gate,
                         "level": LOOK, "found": int(passed.sum()), "of": n}
                    )  # fmt: skip
            print(f"  whole gate: {population.name}, {patients} patients", file=sys.stderr, flush=True)
    return rows


def _all(drawn: Holdouts, question: Question, holdouts: int, levels: tuple[float, ...] = LEVELS) -> dict[str, Any]:
    def block(start: int, stop: int) -> Parts:
        part = slice(start, stop)
        return Parts(
            Holdouts(
                drawn.positives[part], drawn.negatives[part],
                (drawn.champion[0][part], drawn.champion[1][part]),
                (drawn.challenger[0][part], drawn.challenger[1][part]),
            ),
            question,
        )  # fmt: skip

    starts = range(0, holdouts, BLOCK)
    blocks = [rejections(block(start, start + BLOCK), levels) for start in starts]
    # A holdout without a class has no value; a draw of its patients has none either.
    drawn_again = bootstraps(block(0, holdouts // 2), levels)
    return {**drawn_again, **{name: np.concatenate([b[name] for b in blocks], axis=1) for name in blocks[0]}}


def worst(rows: list[dict[str, Any]], method: str, level: float, patients: int, start: str) -> dict[str, Any]:
    """Return the row with the largest share among the populations and the questions that begin with ``start``."""
    chosen = [
        r for r in rows
        if r["method"] == method and r["level"] == level and r["patients"] == patients
        and r["question"].startswith(start)
    ]  # fmt: skip
    return max(chosen, key=lambda r: r["found"] / r["of"])


def mean(rows: list[dict[str, Any]], method: str, level: float, patients: int, question: str) -> float:
    """Return the mean share over the populations."""
    chosen = [
        r["found"] / r["of"] for r in rows
        if r["method"] == method and r["level"] == level and r["patients"] == patients and r["question"] == question
    ]  # fmt: skip
    return float(sum(chosen) / len(chosen))


def tables(rows: list[dict[str, Any]]) -> str:
    """Return what is printed: Markdown, per cent."""
    methods = list(dict.fromkeys(r["method"] for r in rows))
    out = []
    head = "| method | " + " | ".join(f"{n} patients" for n in PATIENTS) + " |\n|---|" + "---|" * len(PATIENTS)
    for level in LEVELS:
        for start, title in (("superiority", "superiority"), ("non-inferiority", "non-inferiority, margin 1 point")):
            out.append(f"\nNull of {title}, level {100 * level:g}%: worst population, % found [95% interval]\n\n{head}")
            for method in methods:
                cells = []
                for n in PATIENTS:
                    row = worst(rows, method, level, n, start)
                    low, high = interval(row["found"], row["of"])
                    cells.append(f"{100 * row['found'] / row['of']:.2f} [{100 * low:.2f}, {100 * high:.2f}]")
                out.append(f"| {method} | " + " | ".join(cells) + " |")
        names = [name for name in QUESTIONS if name.startswith("power")]
        for question in names:
            out.append(f"\n{question}, level {100 * level:g}%: mean of the populations, % found\n\n{head}")
            for method in methods:
                shares = (100 * mean(rows, method, level, n, question) for n in PATIENTS)
                out.append(f"| {method} | " + " | ".join(f"{share:.1f}" for share in shares) + " |")
    return "\n".join(out)


def gate_tables(rows: list[dict[str, Any]]) -> str:
    """Return what is printed of whole gates: the worst population for nulls, the mean for what should be found."""
    head = "| gate | " + " | ".join(f"{n} patients" for n in PATIENTS) + " |\n|---|" + "---|" * len(PATIENTS)
    out = []
    for case in CASES:
        null = case in ("+0", "trade", "worse")
        out.append(f"\nWhole gate at one look's level, {case}: {'worst' if null else 'mean'} population, %\n\n{head}")
        for gate in GATES:
            cells = []
            for n in PATIENTS:
                row = worst(rows, gate, LOOK, n, case)
                low, high = interval(row["found"], row["of"])
                share = f"{100 * row['found'] / row['of']:.2f} [{100 * low:.2f}, {100 * high:.2f}]"
                cells.append(share if null else f"{100 * mean(rows, gate, LOOK, n, case):.1f}")
            out.append(f"| {gate} | " + " | ".join(cells) + " |")
    return "\n".join(out)


def main() -> None:
    """Measure, print the tables, and write all rows if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--holdouts", type=int, default=4_000)
    parser.add_argument("--gates-only", action="store_true", help="leave out the tests one by one")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    started = time.monotonic()
    whole = measure_gates(asked.holdouts)
    print(gate_tables(whole), flush=True)
    rows = [] if asked.gates_only else measure(asked.holdouts)
    if rows:
        print(tables(rows))
    print(f"\n{asked.holdouts} holdouts a cell, {time.monotonic() - started:.0f} s")
    if asked.json:
        asked.json.write_text(json.dumps(whole + rows))


if __name__ == "__main__":
    main()
