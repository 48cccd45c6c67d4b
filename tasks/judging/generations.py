"""Generations of the holdout: which one is current, and how a new one begins when the old one is worn out.

A new generation's holdout are patients that no model was trained on, chosen on or judged on. All others, those of the
worn-out holdout too, can only be trained on or, if they were before, chosen on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime

import pandas as pd

from infra.provenance import person
from infra.store.keys import record_key
from tasks.context import Context
from tasks.judging.assignments import COLUMNS, Memory
from tasks.judging.ledger import read_ledger
from validation.digest import digest, sha256
from validation.errors import RetrainError, RotationRefused
from validation.patients import side_of
from validation.records import NEGATIVE, POSITIVE, Candidate, Generation, SideCount, SideName, Split


@dataclass(frozen=True)
class Current:
    """The generation in force; the first one has no record of its own."""

    name: str
    record: Generation | None = None


def current_generation(context: Context) -> Current:
    """Return the newest generation that descends from the one that the settings name."""
    first = context.settings.split.generation
    found = [g for g in generations(context) if g.first == first]
    return Current(found[-1].name, found[-1]) if found else Current(first)


def generations(context: Context) -> list[Generation]:
    """Return all rotations, oldest first."""
    ids = context.records.ids(Generation)
    return sorted((context.records.load(Generation, id_) for id_ in ids), key=lambda g: (g.first, g.number))


def fixed_sides(context: Context, generation: Current) -> dict[str, SideName]:
    """Return the sides of the patients that were known when a generation began; of a first one, none."""
    if generation.record is None:
        return {}
    table = context.records.load_table(generation.record.sides)
    return dict(zip(table["patient"], table["side"], strict=True))


def rotate(context: Context, facts: pd.DataFrame, why: str = "", who: str = "") -> Generation:
    """Begin a new generation over the accepted cells ``facts`` (tasks/validate.py) and return its record.

    Raises:
        RotationRefused: when the patients that no model has met are too few for the gate.
        RetrainError: when another rotation began at the same moment.
    """
    current = current_generation(context)
    used = _used(context)
    fresh = _fresh(facts, used)
    _refuse_too_few(context, facts, fresh)
    number = current.record.number + 1 if current.record else 2
    first = context.settings.split.generation
    name = f"{first}.{number}"
    holdout = _choose(context, name, facts, fresh)
    cells = facts[facts["patient"].isin(holdout)]
    sides = _deal(context, name, facts, used, holdout)
    table = pd.DataFrame(sorted(sides.items()), columns=["patient", "side"])
    # Named by its content, so that of two rotations at once each keeps its own tables.
    own = digest(name, sorted(sides.items()))
    record = Generation(
        name=name,
        first=first,
        number=number,
        previous=current.name,
        since=datetime.now(UTC),
        why=why,
        who=who or person(),
        sides=context.records.save_table(Generation, f"{name}/{own}", "sides", table),
        pixels=context.records.save_table(Generation, f"{name}/{own}", "pixels", _met_pixels(used, sides)),
        holdout=SideCount(
            patients=len(holdout),
            positive=int((cells["label"] == POSITIVE).sum()),
            negative=int((cells["label"] == NEGATIVE).sum()),
        ),
    )
    context.store.create(record_key(Generation.kind, name), record.model_dump_json(indent=2).encode())
    if context.records.load(Generation, name) != record:
        raise RetrainError(
            f"generation {name} was begun by somebody else at the same moment", "see `retrain holdout status`"
        )
    return record


def _used(context: Context) -> Memory:
    """Return all cells that a model was trained, chosen or judged on, in any generation; ``side`` is what they may be.

    Whatever was on the train or validation side of a split counts, trained or not; a holdout counts when a look was
    taken at it. A worn-out holdout cell goes to training.
    """
    parts = [context.records.load_table(generation.pixels)[COLUMNS] for generation in generations(context)]
    splits = [context.records.load(Split, id_) for id_ in context.records.ids(Split)]
    for name in sorted({split.generation for split in splits}):
        own = [split for split in splits if split.generation == name]
        consulted = _consulted(context, name, own)
        for split in own:
            rows = context.records.load_table(split.table)[COLUMNS]
            rows = rows if split.id in consulted else rows[rows["side"] != "holdout"]
            parts.append(rows.replace({"side": {"holdout": "train"}}))
    rows = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS, dtype=str)
    return Memory(rows.drop_duplicates(ignore_index=True))


def _consulted(context: Context, generation: str, splits: list[Split]) -> set[str]:
    """Return the splits whose holdout was looked at; all of them when the ledger does not tell for sure."""
    found = set()
    for entry in read_ledger(context, generation):
        challenger = context.records.find(Candidate, entry.look.challenger) if entry.look else None
        if challenger is None:
            return {split.id for split in splits}
        found.add(challenger.spec.split)
    return found


def _fresh(facts: pd.DataFrame, used: Memory) -> pd.DataFrame:
    """Return the cells of patients that nothing was learned from: neither under their name nor by a cell of theirs."""
    met = set(used.patients()) | {""}
    met |= set(facts.loc[facts["pixels"].isin(set(used.rows["pixels"])), "patient"])
    return facts[~facts["patient"].isin(met)]


def _refuse_too_few(context: Context, facts: pd.DataFrame, fresh: pd.DataFrame) -> None:
    rules = context.settings.gate
    patients = int(fresh["patient"].nunique())
    counts = {label: int((fresh["label"] == label).sum()) for label in (POSITIVE, NEGATIVE)}
    known = max(1, int(facts["patient"].nunique()))
    more = rules.min_patients - patients
    for label, count in counts.items():
        a_patient = max(1, int((facts["label"] == label).sum())) / known
        more = max(more, math.ceil((rules.min_cells_per_class - count) / a_patient))
    if more > 0:
        raise RotationRefused(
            f"{patients} patients ({counts[POSITIVE]} {POSITIVE} and {counts[NEGATIVE]} {NEGATIVE} cells) were never "
            f"trained, chosen or judged on; a new holdout needs {rules.min_patients} patients and "
            f"{rules.min_cells_per_class} cells of each class: about {more} more",
            "let new patients arrive, and rotate before the next night trains on them",
        )


def _choose(context: Context, name: str, facts: pd.DataFrame, fresh: pd.DataFrame) -> set[str]:
    """Return the new holdout's patients, in the order of their hashes: the settings' share, or what the gate needs."""
    rules, split = context.settings.gate, context.settings.split
    wanted = max(rules.min_patients, math.ceil((1 - split.train - split.validation) * facts["patient"].nunique()))
    cells = fresh.groupby("patient")["label"].value_counts().unstack(fill_value=0)
    cells = cells.reindex(columns=[POSITIVE, NEGATIVE], fill_value=0)
    ordered = sorted(cells.index, key=lambda patient: sha256(f"{name}/{patient}".encode()))
    sums = cells.loc[ordered].cumsum()
    enough = int((sums.min(axis=1) < rules.min_cells_per_class).sum()) + 1
    return set(ordered[: max(wanted, enough)])


def _deal(context: Context, name: str, facts: pd.DataFrame, used: Memory, holdout: set[str]) -> dict[str, SideName]:
    """Return the side of every patient known now; whoever was met before keeps to training or to validation."""
    rules = context.settings.split.model_copy(update={"generation": name})
    sides: dict[str, SideName] = {}
    for patient in set(facts["patient"]) - {""}:
        by_hash = side_of(patient, rules)
        sides[patient] = "validation" if by_hash == "validation" else "train"
    return {**sides, **used.patients(), **dict.fromkeys(holdout, "holdout")}


def _met_pixels(used: Memory, sides: dict[str, SideName]) -> pd.DataFrame:
    """Return the cells that were used, each once, with the side of its patient in the new generation."""
    rows = used.rows.assign(side=[sides.get(patient, "train") for patient in used.rows["patient"]])
    # "train" sorts before "validation": a cell that two patients had was trained on if either was.
    return rows.sort_values(["pixels", "side", "patient"]).drop_duplicates("pixels", ignore_index=True)[COLUMNS]
