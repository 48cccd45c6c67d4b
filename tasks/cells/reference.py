"""The reference for tonight's images: the images that the champion was trained on."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from tasks.context import Context
from validation.images.facts import FACT_NAMES
from validation.records import Candidate, ChampionRef, Split, ValidationResult


@dataclass(frozen=True)
class Reference:
    """The facts of a champion's training images, one row each; None when there is no champion to compare with."""

    name: str
    facts: pd.DataFrame | None


def reference_of(context: Context, champion: ChampionRef | None) -> Reference:
    """Return the facts of the images that ``champion`` was trained on.

    Without a champion, or when its images were measured by other rules than today's, the batch itself is the reference.
    """
    if champion is None:
        return Reference("this batch itself, since there is no champion yet", None)
    records = context.records
    candidate = records.find(Candidate, champion.candidate)
    split = records.find_whole(Split, candidate.split) if candidate else None
    validation = records.find_whole(ValidationResult, split.validation) if split else None
    if split is None or validation is None:
        return Reference(f"this batch itself, since the records of version {champion.version} are gone", None)
    facts = records.load_table(validation.facts)
    if not set(FACT_NAMES) <= set(facts.columns):
        name = f"this batch itself, since the images of version {champion.version} were measured by other rules"
        return Reference(name, None)
    # Its members together were trained on every cell of the split.
    trained = facts[facts["key"].isin(records.load_table(split.table)["key"])]
    return Reference(f"the {len(trained):,} training images of version {champion.version}", trained)
