"""All findings of validation: each reason to name an image, each check of a batch.

Each reason has its default cost, which the setting ``data.severities`` changes by name, its meaning, and advice. No
other module defines a reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from validation.records import Finding, Severity


@dataclass(frozen=True, slots=True)
class Reason:
    """What a finding costs, what it means, and what a person can do about it."""

    severity: Severity
    meaning: str
    advice: str
    unusable: bool = False  # such an image cannot be trained on, whatever the settings


def _unusable(meaning: str, advice: str) -> Reason:
    return Reason("reject", meaning, advice, unusable=True)


_REPLACE = "export the image again under the same key: the next night includes it"
_LOOK = "look at it; move or delete it if it is not usable"

# In the order of the checks.
REASONS: dict[str, Reason] = {
    # The object, before it is fetched.
    "junk file": Reason(
        "warn", "a file manager's leftover or a folder's placeholder among the images", "delete it when convenient"
    ),
    "odd key": _unusable(
        "the key has '..', an empty part or a control character", "upload it as labeled/<Class>/<name>"
    ),
    "unknown class": _unusable(
        "the folder is none of the classes",
        "move it to labeled/Parasitized/ or labeled/Uninfected/, or name its class in the setting `classes`",
    ),
    "too many bytes": _unusable("the file is larger than data.max_bytes; it was not fetched", _REPLACE),
    "unreadable": _unusable("the store refused to return it, but returned others", "check its permissions"),
    "vanished": _unusable("it was changed or deleted while the night ran", "run the night again"),
    # The file.
    "not an image": _unusable("not a known image format", _REPLACE),
    "wrong format": _unusable("an image, but neither PNG nor JPEG", _REPLACE),
    "truncated": _unusable("the file ends before the image does", _REPLACE),
    "damaged image": _unusable("the file's content contradicts itself", _REPLACE),
    "decoder crashed": _unusable("the process that decoded it crashed or hung, twice", _REPLACE),
    "animated": _unusable("the file holds more than one picture", _REPLACE),
    "wrong mode": _unusable("the colours are not RGB", _REPLACE),
    "alpha": _unusable("the image has a transparent layer", _REPLACE),
    "16-bit": _unusable("the image has 16 bits a channel, 8 are expected", _REPLACE),
    "too small": Reason("reject", "a side is shorter than data.min_pixels", _REPLACE),
    "too large": _unusable("a side is longer than data.max_pixels", _REPLACE),
    "odd aspect": Reason("reject", "the image is far longer than it is wide, or the reverse", _REPLACE),
    # Its content.
    "blank": Reason("reject", "the whole image is of one colour", _REPLACE),
    "no cell": Reason("reject", "nothing stands out from the black background", _REPLACE),
    "several cells": Reason("warn", "more than one large object on the black background", _LOOK),
    "cell cut off": Reason("warn", "the cell runs into the image's edge", _LOOK),
    "out of focus": Reason("warn", "less sharp than almost all cells that the champion was trained on", _LOOK),
    "stain out of range": Reason("warn", "hue, saturation or brightness is unlike the champion's cells", _LOOK),
    "unusual size": Reason("warn", "far larger or smaller than the champion's cells", _LOOK),
    # Compared with the others.
    "both classes": _unusable(
        "the same pixels are filed under both classes", "decide which label is right and delete the other"
    ),
    "two patients": _unusable(
        "the same pixels are filed under two patients; the first seen is kept", "delete the wrong one"
    ),
    "duplicate": _unusable("the same pixels as another image of the patient", "delete it when convenient"),
    "near duplicate": Reason("warn", "hardly differs from another image", _LOOK),
    "no patient": Reason(
        "warn", "no patient in its name: used for training only", "correct the name or data.patient_pattern"
    ),
}

# Checks of the batch as a whole, by Great Expectations, with the default cost of a failed one.
CHECKS: dict[str, Literal["warn", "stop"]] = {
    "labels are known classes": "stop",
    "no two images have the same pixels": "stop",
    "image width": "stop",
    "image height": "stop",
    "no finding stops the night": "stop",
    "Parasitized cells": "stop",
    "Uninfected cells": "stop",
    "patients with Parasitized cells": "stop",
    "patients with Uninfected cells": "stop",
    "class ratio, larger over smaller": "stop",
    "class ratio is comfortable": "warn",
    "share of rejected images": "stop",
    "share of rejected images is comfortable": "warn",
    "share of images without a patient": "warn",
    "tonight: class ratio": "warn",
    "tonight: share of rejected images": "warn",
    "tonight: largest share of one patient": "warn",
    "tonight: drift of hue": "warn",
    "tonight: drift of saturation": "warn",
    "tonight: drift of brightness": "warn",
    "tonight: drift of focus": "warn",
    "tonight: drift of cell size": "warn",
    "tonight: drift of the share of Parasitized": "warn",
}


def severity_of(reason: str, changed: Mapping[str, Severity]) -> Severity:
    """Return a finding's cost by the settings, or its default."""
    return changed.get(reason, REASONS[reason].severity)


def with_severities(findings: Iterable[Finding], changed: Mapping[str, Severity]) -> list[Finding]:
    """Return the findings with their costs by the settings."""
    return [f.model_copy(update={"severity": severity_of(f.reason, changed)}) for f in findings]
