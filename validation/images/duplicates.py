"""Duplicate images: which one is kept, and the findings on the others."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from validation.images.fingerprints import near_duplicates
from validation.records import Finding

Pairs = list[tuple[int, int]]


def compare_all(facts: pd.DataFrame) -> Pairs:
    """Return the positions of nearly equal images, each compared with all."""
    return near_duplicates(facts["fingerprint"].tolist())


def without_duplicates(facts: pd.DataFrame) -> tuple[pd.DataFrame, list[Finding]]:
    """Return the facts without duplicates, sorted by key, and a finding for each image that was removed.

    ``facts`` has one row per image (key, label, patient, pixels, first_seen). Images whose pixels are filed under both
    classes are all removed: one label is wrong, but which is unknown. Of the others the first one seen is kept, so that
    a later image never changes a patient's cells.
    """
    facts = facts.sort_values(["first_seen", "key"], kind="stable")
    disputed = facts.groupby("pixels")["label"].transform("nunique") > 1
    later = facts.duplicated("pixels") & ~disputed
    first = facts.drop_duplicates("pixels").set_index("pixels")[["key", "patient"]]
    findings = [
        Finding(reason="both classes", key=key, detail="the same pixels are filed under both classes")
        for key in facts.loc[disputed, "key"]
    ]
    for key, pixels, patient in facts.loc[later, ["key", "pixels", "patient"]].itertuples(index=False, name=None):
        kept, owner = first.loc[pixels]
        if owner == patient:
            findings.append(Finding(reason="duplicate", key=key, detail=f"the same pixels as {kept}"))
        else:
            detail = f"the same pixels as {kept} of {owner or 'no patient'}, which was seen first"
            findings.append(Finding(reason="two patients", key=key, detail=detail))
    return facts[~disputed & ~later].sort_values("key", kind="stable"), findings


def near_duplicate_findings(facts: pd.DataFrame, pairs: Callable[[pd.DataFrame], Pairs] = compare_all) -> list[Finding]:
    """Return a finding for each image that hardly differs from an earlier one.

    ``pairs`` returns the positions of the nearly equal ones of some facts, as ``near_duplicates`` does.
    """
    facts = facts.sort_values(["first_seen", "key"], kind="stable")
    keys, patients, labels = (facts[column].tolist() for column in ("key", "patient", "label"))
    first: dict[int, int] = {}
    for one, other in pairs(facts):
        first.setdefault(other, one)
    findings = []
    for later, earlier in sorted(first.items()):
        differences = ["of another patient"] * (patients[later] != patients[earlier])
        differences += ["of the other class"] * (labels[later] != labels[earlier])
        detail = f"hardly differs from {keys[earlier]}{', ' if differences else ''}{' and '.join(differences)}"
        findings.append(Finding(reason="near duplicate", key=keys[later], detail=detail))
    return findings
