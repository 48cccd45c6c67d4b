"""Images that are there more than once: which one stays, and what is said of the others."""

from __future__ import annotations

import pandas as pd

from validation.images.fingerprints import near_duplicates
from validation.records import Finding


def without_duplicates(facts: pd.DataFrame) -> tuple[pd.DataFrame, list[Finding]]:
    """Return the facts without doubles, sorted by key, and a finding for each image that was left out.

    ``facts`` has one row an image (key, label, patient, pixels, first_seen). All images whose pixels are filed under
    both classes are left out: one label is wrong, nobody knows which. Of the others the first that was seen stays, so
    that what arrives later never changes a patient's cells.
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
            told = f"the same pixels as {kept} of {owner or 'no patient'}, which was seen first"
            findings.append(Finding(reason="two patients", key=key, detail=told))
    return facts[~disputed & ~later].sort_values("key", kind="stable"), findings


def near_duplicate_findings(facts: pd.DataFrame) -> list[Finding]:
    """Return a finding for each image that hardly differs from one that was seen before it."""
    facts = facts.sort_values(["first_seen", "key"], kind="stable")
    keys, patients, labels = (facts[column].tolist() for column in ("key", "patient", "label"))
    first: dict[int, int] = {}
    for one, other in near_duplicates(facts["fingerprint"].tolist()):
        first.setdefault(other, one)
    findings = []
    for later, earlier in sorted(first.items()):
        apart = [
            *(["of another patient"] if patients[later] != patients[earlier] else []),
            *(["of the other class"] if labels[later] != labels[earlier] else []),
        ]
        told = f"hardly differs from {keys[earlier]}{', ' if apart else ''}{' and '.join(apart)}"
        findings.append(Finding(reason="near duplicate", key=keys[later], detail=told))
    return findings
