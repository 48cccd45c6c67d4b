"""The patient of a cell, and the permanent side of a patient in the split."""

from __future__ import annotations

import hashlib
import re

from validation.records import SideName
from validation.rules import SplitRules


def patient_of(name: str, pattern: str) -> str | None:
    """Return the patient in a file's name, or None.

    ``pattern`` is matched at the start of the last part of ``name``; its one group is the patient. The default takes
    the part before "thin" in any case, since splitting on "thinF" misses names like ``thin_Original_Motic``.
    """
    match = re.match(pattern, name.rsplit("/", 1)[-1])
    return (match.group(1) or None) if match else None


def side_of(patient: str | None, rules: SplitRules) -> SideName:
    """Return the side of a patient: a pure function of the name, so that no patient ever changes sides.

    A cell without a patient can only be trained on: its patient may be any of the others.
    """
    if patient is None:
        return "train"
    fraction = int(hashlib.sha256(f"{rules.generation}/{patient}".encode()).hexdigest()[:16], 16) / 2**64
    if fraction < rules.train:
        return "train"
    return "validation" if fraction < rules.train + rules.validation else "holdout"
