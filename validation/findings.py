"""Everything that validation may say, on one page: each reason to name an image, each check of a batch.

A reason stands here with what it costs by default, what it means and what to do about it; a setting
(``data.severities``) changes the cost by name. No other module invents a reason.
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
    unusable: bool = False  # nothing to train on is left of such an image, whatever the settings say


_REPLACE = "export the image again and put it under the same key: the next night takes it in"
_LOOK = "look at it; move or delete it if it is no good"

# In the order in which an image meets them.
REASONS: dict[str, Reason] = {
    # The object, before it is fetched.
    "junk file": Reason("warn", "a file manager's leftover among the images", "delete it when convenient"),
    "odd key": Reason(
        "reject",
        "the key has '..', an empty part or a control character",
        "upload it as labeled/<Class>/<name>",
        unusable=True,
    ),
    "unknown class": Reason(
        "reject", "the folder is none of the classes", "move it to a folder of a known class", unusable=True
    ),
    "too many bytes": Reason(
        "reject", "the file is larger than data.max_bytes; it was not fetched", _REPLACE, unusable=True
    ),
    "unreadable": Reason(
        "reject", "the store did not give it out, though it gave others", "check its permissions", unusable=True
    ),
    "vanished": Reason("reject", "it was changed or deleted while the night ran", "run the night again", unusable=True),
    # The file.
    "not an image": Reason("reject", "the bytes are no image that is known", _REPLACE, unusable=True),
    "wrong format": Reason("reject", "an image, but neither PNG nor JPEG", _REPLACE, unusable=True),
    "truncated": Reason("reject", "the file ends before the image does", _REPLACE, unusable=True),
    "damaged image": Reason("reject", "the file's content contradicts itself", _REPLACE, unusable=True),
    "decoder crashed": Reason("reject", "the process that decoded it crashed or hung, twice", _REPLACE, unusable=True),
    "animated": Reason("reject", "the file holds more than one picture", _REPLACE, unusable=True),
    "wrong mode": Reason("reject", "the colours are not RGB", _REPLACE, unusable=True),
    "alpha": Reason("reject", "the image has a transparent layer", _REPLACE, unusable=True),
    "16-bit": Reason("reject", "the image has 16 bits a channel, 8 are expected", _REPLACE, unusable=True),
    "too small": Reason("reject", "a side is shorter than data.min_pixels", _REPLACE),
    "too large": Reason("reject", "a side is longer than data.max_pixels", _REPLACE, unusable=True),
    "odd aspect": Reason("reject", "the image is far longer than it is wide, or the reverse", _REPLACE),
    # What it shows.
    "blank": Reason("reject", "the whole image is of one colour", _REPLACE),
    "no cell": Reason("reject", "nothing stands out from the black background", _REPLACE),
    "several cells": Reason("warn", "more than one sizeable object on the black background", _LOOK),
    "cell cut off": Reason("warn", "the cell runs into the image's edge", _LOOK),
    "out of focus": Reason("warn", "less sharp than almost all cells that the champion was trained on", _LOOK),
    "stain out of range": Reason("warn", "hue, saturation or brightness is unlike the champion's cells", _LOOK),
    "unusual size": Reason("warn", "far larger or smaller than the champion's cells", _LOOK),
    # Compared with the others.
    "both classes": Reason(
        "reject",
        "the same pixels are filed under both classes",
        "decide which label is right and delete the other",
        unusable=True,
    ),
    "two patients": Reason(
        "reject",
        "the same pixels are filed under two patients; the first seen is kept",
        "delete the wrong one",
        unusable=True,
    ),
    "duplicate": Reason(
        "reject", "the same pixels as another image of the patient", "delete it when convenient", unusable=True
    ),
    "near duplicate": Reason("warn", "hardly differs from another image", _LOOK),
    "no patient": Reason(
        "warn", "its name tells no patient: used for training only", "correct the name or data.patient_pattern"
    ),
    "changed sides": Reason(
        "reject",
        "the same pixels were on the other side of the split before",
        "file the image under the patient that it came with first",
        unusable=True,
    ),
}

# Checks of the batch as a whole, as Great Expectations runs them, with what a failed one costs by default.
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
    """Return what a finding costs: what the settings say, else the default."""
    return changed.get(reason, REASONS[reason].severity)


def with_severities(findings: Iterable[Finding], changed: Mapping[str, Severity]) -> list[Finding]:
    """Return the findings with what each costs under these settings."""
    return [f.model_copy(update={"severity": severity_of(f.reason, changed)}) for f in findings]
