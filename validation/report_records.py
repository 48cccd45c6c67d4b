"""What a report shows besides its night's own records: gathered once, stored with the report, never looked up again.

The bucket, the ledger and the history go on changing; a report built again a year later must not.
"""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar

from pydantic import Field

from validation.records import Interval, Look, Record, Verdict


class PastNight(Record):
    """How the model that was champion after a night did on its holdout: a point of the champion's history."""

    decision: str
    at: datetime
    verdict: Verdict
    version: str | None
    model: str | None
    balanced_accuracy: Interval | None
    sensitivity: Interval | None
    specificity: Interval | None


class Exhibits(Record):
    """What was gathered for the report on the decision ``id``.

    Table ``cells`` (Parquet): gallery, key, sha256, patient, label (1 = Parasitized, -1 not known), challenger,
    champion, other (probabilities; NaN where there is none), note, side (pixels) and image (WebP, re-encoded from
    pixels; empty where none could be decoded), in the order in which they are shown.
    """

    kind: ClassVar[str] = "reports"

    id: str
    cells: str
    counts: dict[str, int] = Field(description="how many there are of what a gallery shows a part of")
    ledger: tuple[Look, ...]
    looks: int = Field(description="looks at the holdout that share the error budget")
    error_budget: float
    past: tuple[PastNight, ...]
    last_good: str | None = Field(None, description="the last decision before this one that crowned a champion")
    left_out: tuple[str, ...] = Field((), description="what could not be shown, and why")
