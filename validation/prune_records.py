"""What is left of a report that was retired: that there was one, and why it is gone."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar

from validation.records import Record


class Retired(Record):
    """A decision whose report, pictures and tables were removed by the retention policy. Named by the decision.

    The decision, its night, its evaluation and its candidates stay as records; this one is written before anything
    is removed, so that nothing half-removed is believed.
    """

    kind: ClassVar[str] = "retired"

    decision: str
    why: str
    at: datetime
