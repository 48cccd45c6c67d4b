"""A year of looks by the gate: how often it promotes what is not better, and how soon what is.

    python -m benchmarks.gate_years [--lines 400] [--cells 4] [--patients 60 100 140 200] [--json FILE]

The old design (15% of the patients judge by the uncapped rule, 15% choose who looks) beside the new one (each patient
is judged by the member that has not seen it; who looks is chosen on tuning patients). Models are drawn as equal
trainings on real cells are (benchmarks/populations.py; ``--cells`` times as many cells a patient as in the quarter of
the set that was measured). Their noise is shared: by all members of a night, and by all patients of a member.

Every line has 24 looks, and up to 120 nights to take them. Its champion was promoted by the same patients over a
predecessor 1 point worse, which remains the reference; "creep" begins with a reference that nothing was chosen on.
Every promotion of a null counts as false, whatever its noise:

- equal: as good as the champion in expectation;
- worse: sensitivity worse by exactly the margin, made up for by specificity;
- creep: each challenger loses half the margin of sensitivity to the champion before it, made up for by specificity.
  False is the second promotion, by which the whole margin is lost to the reference.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, logit, ndtri

from benchmarks.populations import RandomCalls, equal_models, exact
from validation.gate import level_of_look
from validation.patients import FOLDS, TUNING_SHARE
from validation.rules import GateRules
from validation.statistics.paired_tests import MOST_GAIN, SEED, UNSEEN

RULES = GateRules()
LEVEL = level_of_look(RULES)
NIGHTS = 120
FLIPS = 4_000
# Shared noise, standard deviations on the logit scale: 0.04 is about 0.1 point of either rate.
NIGHT_NOISE, MEMBER_NOISE = 0.04, 0.06
# How much of a model's effect on a patient two members of a night share.
ALIKE = 0.5
OLD_SHARE = 0.15

# What a challenger has over its champion, in sensitivity and specificity.
NULLS = {"equal": (0.0, 0.0), "worse": (-0.01, 0.024), "creep": (-0.005, 0.014)}
POWER = {"+0.5": (0.005, 0.005), "+1": (0.01, 0.01), "+2": (0.02, 0.02), "+4": (0.056, 0.024)}
BEFORE = (-0.01, -0.01)


@dataclass(frozen=True)
class Design:
    """Who judges, who chooses, and by which rule."""

    name: str
    members: int
    most_gain: float
    unseen: float
    reference: bool = True

    def roles(self, rng: np.random.Generator, patients: int) -> tuple[Any, Any, Any]:
        """Return which patients judge, which are tuning patients (bool [patients] each), and each one's fold."""
        if self.members == 1:
            place, part = rng.permutation(patients), max(2, round(OLD_SHARE * patients))
            return place < part, (place >= part) & (place < 2 * part), np.zeros(patients, int)
        tunes = rng.random(patients) < 1 - (1 - TUNING_SHARE) ** (self.members - 1)
        return np.ones(patients, bool), tunes, rng.integers(0, self.members, patients)


OLD = Design("old", 1, np.inf, 0.0, reference=False)
NEW = Design("new", FOLDS, MOST_GAIN, UNSEEN)
UNGUARDED = replace(NEW, name="new without reference", reference=False)


class Lines:
    """Many lines of nights at once: their patients, and calls of models drawn on them.

    Calls are right ones, float [lines, 2 classes, patients], of the judging and of the tuning score.
    """

    def __init__(self, models: RandomCalls, design: Design, lines: int, patients: int, seed: Sequence[int]) -> None:
        self.rng, self.models, self.design = np.random.default_rng(seed), models, design
        self.who = self.rng.integers(0, models.cells.shape[1], (lines, patients))
        self.judges, self.tunes, self.fold = (
            np.stack(part) for part in zip(*(design.roles(self.rng, patients) for _ in range(lines)), strict=True)
        )
        self.kinds = np.moveaxis(models.cells[:, self.who], 0, 1)  # [lines, 2, patients, kinds]
        self.cells = self.kinds.sum(axis=3).astype(float)
        self.logits = logit(np.asarray(models.chances))[None, :, None, :]

    def draw(self, active: Any, shifts: Any) -> tuple[Any, Any]:
        """Draw a model for each line in ``active`` int [k]; ``shifts`` float [k, 2], its advantage in logits."""
        rng, size = self.rng, (len(active), 2, self.who.shape[1])
        spread = np.array(self.models.spread)[None, :, None]
        base = shifts[:, :, None] + rng.normal(0, NIGHT_NOISE, (len(active), 2, 1))
        shared = rng.normal(0, 1, size)
        scores = []
        for side in (self.judges, self.tunes):
            fold = self.fold[active] if side is self.judges else rng.integers(0, self.design.members, size[::2])
            member = rng.normal(0, MEMBER_NOISE, (len(active), 2, self.design.members))
            effect = base + np.take_along_axis(member, np.repeat(fold[:, None], 2, axis=1), axis=2)
            effect = effect + spread * (np.sqrt(ALIKE) * shared + np.sqrt(1 - ALIKE) * rng.normal(0, 1, size))
            there = side[active][:, None, :, None] * self.kinds[active]
            line, one_class, patient, kind = np.nonzero(there)
            chance = expit(self.logits[0, one_class, 0, kind] + effect[line, one_class, patient])
            right = np.zeros(size)
            np.add.at(right, (line, one_class, patient), rng.binomial(there[line, one_class, patient, kind], chance))
            scores.append(right)
        return scores[0], scores[1]

    def balanced(self, active: Any, tuning: Any) -> Any:
        """Return the balanced accuracy on the tuning patients, float [k]."""
        cells = (self.cells[active] * self.tunes[active][:, None]).sum(axis=2)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (tuning.sum(axis=2) / cells).mean(axis=1)

    def passes(self, active: Any, new: Any, old: Any, reference: Any) -> Any:
        """Return which challengers the gate promotes, bool [k] (the floors are met)."""
        cells = self.cells[active] * self.judges[active][:, None]
        found = not_worse(new - old, cells, self.design)
        if self.design.reference:
            found &= not_worse(new - reference, cells, self.design)
        if found.any():
            found[found] = superior((new - old)[found], cells[found])
        return found


def not_worse(gained: Any, cells: Any, design: Design) -> Any:
    """Return bool [lines]: no loss beyond the margin in either class; both float [lines, 2, patients]."""
    total = cells.sum(axis=2, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        gains, shares = gained / total, cells / total
        count = (cells > 0).sum(axis=2)
        most = design.most_gain * np.sqrt(shares / count[..., None])
        capped = np.where(gains > most, most, gains)
        x = capped + np.array([RULES.sensitivity_margin, RULES.specificity_margin])[None, :, None] * shares
        squares = ((x**2).sum(axis=2) + design.unseen**2 / count) * count / (count - 1)
        value = x.sum(axis=2)
        return ((value > 0) & (value**2 > ndtri(LEVEL) ** 2 * squares)).all(axis=1)


def superior(gained: Any, cells: Any) -> Any:
    """Return bool [lines]: better balanced accuracy by sign flips."""
    gains = (gained / cells.sum(axis=2, keepdims=True)).mean(axis=1)
    chosen = (np.random.default_rng(SEED).random((FLIPS, gains.shape[1])) < 0.5).astype(float)
    if (few := gains.shape[1]) <= 12:
        chosen = (np.arange(1, 2**few)[:, None] >> np.arange(few) & 1).astype(float)
    allowed = int(LEVEL * (len(chosen) + 1) + 1e-9) - 1
    return ((chosen @ gains.T) <= 1e-12).sum(axis=0) <= allowed


def champions(lines: Lines) -> tuple[Any, Any, Any]:
    """Return champion (judging and tuning calls) and reference: the first to be promoted over a worse predecessor."""
    everyone = np.arange(len(lines.who))
    zero = np.zeros((len(everyone), 2))
    before = lines.draw(everyone, zero + lines.models.shifts(BEFORE))
    judging, tuning = lines.draw(everyone, zero)
    waiting = everyone
    for _ in range(RULES.looks):
        beats = lines.balanced(waiting, tuning[waiting]) > lines.balanced(waiting, before[1][waiting])
        passed = beats & lines.passes(waiting, judging[waiting], before[0][waiting], before[0][waiting])
        waiting = waiting[~passed]
        if not len(waiting):
            break
        judging[waiting], tuning[waiting] = lines.draw(waiting, zero[waiting])
    return judging, tuning, before[0]


def walk(lines: Lines, gains: tuple[float, float], *, creep: bool) -> dict[str, Any]:
    """Return for each line the night of the promotion that counts (0: none), and the looks taken."""
    count = len(lines.who)
    shifts = np.array([lines.models.shifts((step * gains[0], step * gains[1])) for step in range(3)])
    if creep:
        judging, tuning = lines.draw(np.arange(count), np.zeros((count, 2)))
        reference = judging.copy()
    else:
        judging, tuning, reference = champions(lines)
    promoted, looks, steps = np.zeros(count, int), np.zeros(count, int), np.zeros(count, int)
    first = np.zeros(count, int)
    for night in range(1, NIGHTS + 1):
        active = np.flatnonzero((promoted == 0) & (looks < RULES.looks))
        if not len(active):
            break
        new = lines.draw(active, shifts[steps[active] + 1])
        looking = lines.balanced(active, new[1]) > lines.balanced(active, tuning[active])
        looks[active[looking]] += 1
        who = active[looking]
        passed = lines.passes(who, new[0][looking], judging[who], reference[who])
        winners = who[passed]
        judging[winners], tuning[winners] = new[0][looking][passed], new[1][looking][passed]
        steps[winners] += 1
        first[winners] = np.where(first[winners] == 0, night, first[winners])
        counts = winners[steps[winners] == 2] if creep else winners
        promoted[counts] = night
    return {"promoted": promoted, "first": first, "looks": looks}


def measure(lines: int, times: int, patients: Sequence[int]) -> list[dict[str, Any]]:
    """Return a row for each number of patients, design and case."""
    models = equal_models()
    models = replace(models, cells=models.cells * times)
    rows = []
    for number in patients:
        for design in (OLD, NEW, UNGUARDED):
            for place, (case, gains) in enumerate((NULLS | POWER).items()):
                if design is UNGUARDED and case != "creep":
                    continue
                found = walk(Lines(models, design, lines, number, [number, place]), gains, creep=case == "creep")
                promoted = found["promoted"]
                rows.append(
                    {"patients": number, "design": design.name, "case": case, "of": lines,
                     "promoted": int((promoted > 0).sum()),
                     "within_a_week": int(((promoted > 0) & (promoted <= 7)).sum()),
                     "any": int((found["first"] > 0).sum()), "looks": float(found["looks"].mean())}
                )  # fmt: skip
            print(f"  {number} patients, {design.name}", file=sys.stderr, flush=True)
    return rows


def tables(rows: list[dict[str, Any]]) -> str:
    """Return what is printed: Markdown, per cent of lines with 95% intervals."""

    def cell(row: dict[str, Any], key: str) -> str:
        low, high = exact(row[key], row["of"])
        return f"{100 * row[key] / row['of']:.1f} ({100 * low:.1f}-{100 * high:.1f})"

    kinds = list(dict.fromkeys((row["patients"], row["design"]) for row in rows))
    by_case = {(row["patients"], row["design"], row["case"]): row for row in rows}
    out = ["Years with a false promotion, %:", ""]
    out.append("| patients | design | equal | worse | creep | its first step | looks |")
    out.append("|" + "---|" * 7)
    for kind in kinds:
        chosen = {case: by_case.get((*kind, case)) for case in NULLS}
        shown = " | ".join(cell(row, "promoted") if row else "" for row in chosen.values())
        shown += f" | {cell(chosen['creep'], 'any')}"  # type: ignore[arg-type]
        looks = np.mean([row["looks"] for row in chosen.values() if row])
        out.append(f"| {kind[0]} | {kind[1]} | {shown} | {looks:.1f} |")
    for key, title in (("promoted", "within the year's looks"), ("within_a_week", "within a week")):
        out += ["", f"Lines with a promotion {title}, %, by what is truly better:", ""]
        out += ["| patients | design | " + " | ".join(POWER) + " |", "|" + "---|" * (2 + len(POWER))]
        for kind in kinds:
            if (*kind, "+1") in by_case:
                shown = " | ".join(cell(by_case[*kind, case], key) for case in POWER)
                out.append(f"| {kind[0]} | {kind[1]} | {shown} |")
    return "\n".join(out)


def main() -> None:
    """Simulate, print the tables, and write all figures if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=400)
    parser.add_argument("--cells", type=int, default=4)
    parser.add_argument("--patients", type=int, nargs="+", default=[60, 100, 140, 200])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    started = time.monotonic()
    rows = measure(asked.lines, asked.cells, asked.patients)
    print(tables(rows))
    print(f"\n{asked.lines} lines each, {asked.cells} times the cells, {time.monotonic() - started:.0f} s")
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
