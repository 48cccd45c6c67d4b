"""The patient of a cell, and its permanent roles: the fold that it judges, and the members that it tunes.

Both are pure functions of the patient's name. They are constants, not settings: a champion is compared with
challengers years later on patients that neither has seen, which holds only if no patient ever changes its roles.
"""

from __future__ import annotations

import hashlib
import re

# Members of a full candidate. Five: each is trained on 70% of the patients, as one network was before there were folds.
FOLDS = 5
# Share of the patients outside its fold on whom a member's epoch and temperature are chosen.
TUNING_SHARE = 1 / 8
NO_FOLD = -1
# One of 1,500, for balanced folds over the public archive and the synthetic patients: a matter of names alone.
_SALT = "malaria-998"


def patient_of(name: str, pattern: str) -> str | None:
    """Return the patient in a file's name, or None.

    ``pattern`` is matched at the start of the last part of ``name``; its one group is the patient. The default takes
    the part before "thin" in any case, since splitting on "thinF" misses names like ``thin_Original_Motic``.
    """
    match = re.match(pattern, name.rsplit("/", 1)[-1])
    return (match.group(1) or None) if match else None


def site_of(name: str, pattern: str) -> str | None:
    """Return the site in a file's name, or None; ``pattern`` is matched as that of ``patient_of``."""
    return patient_of(name, pattern)


def fold_of(patient: str) -> int:
    """Return the fold of a patient, 0 .. FOLDS-1; ``NO_FOLD`` for the empty name: it may be any of the others."""
    return int(_fraction("fold", patient) * FOLDS) if patient else NO_FOLD


def is_tuning(patient: str, member: int) -> bool:
    """Return whether ``member`` is tuned on a patient: an eighth of those outside its fold, others for each member."""
    return fold_of(patient) not in (member, NO_FOLD) and _fraction(f"tuning {member}", patient) < TUNING_SHARE


def _fraction(role: str, patient: str) -> float:
    return int(hashlib.sha256(f"{_SALT}/{role}/{patient}".encode()).hexdigest()[:12], 16) / 2**48
