"""Validate: decode every image once, measure it, leave the bad ones out by name, judge the batch as a whole.

Bad input costs the bad item, not the night: findings are collected, the originals stay where they are, and an object
that is repaired is taken in on the next night.
"""

from __future__ import annotations

import logging
from collections import Counter

import pandas as pd

from tasks.context import Context
from tasks.measuring import measure_all
from tasks.stage import stage
from validation.digest import digest
from validation.expectations import check_batch
from validation.facts import FACT_NAMES, ImageFacts, judge_image
from validation.records import CLASSES, Finding, Snapshot, ValidationResult

log = logging.getLogger(__name__)

# Raise it when the rules of this module change: a result of other rules is another result.
RULES_VERSION = 1
EXAMPLES = 10
FACTS = ["key", "sha256", "label", "patient", "size", "width", "height", "pixels", "cell_share", "brightness"]

_REJECTING = ("too small", "too large", "odd aspect", "no cell", "blank")

_DETAILS = {
    "junk file": "left behind by a file manager; delete it when convenient",
    "odd key": "expected labeled/<Class>/<name> without '..', empty parts or control characters",
    "unknown class": f"the class folders are {' and '.join(CLASSES)}",
    "too many bytes": "larger than data.max_bytes; not fetched",
    "unreadable": "the store did not give it out, though it gave others",
}


def validate(context: Context, snapshot: Snapshot) -> ValidationResult:
    """Return what is wrong with a snapshot and what is left of it. Never raises for bad data: the result says so."""
    rules = context.settings.data
    id_ = digest(snapshot.id, rules.model_dump(mode="json"), RULES_VERSION)
    if (stored := context.records.find(ValidationResult, id_)) is not None:
        return stored
    objects = context.records.load_table(snapshot.table)
    unusable = objects["problem"] != ""
    findings = [
        Finding(reason=problem, key=key, detail=_DETAILS[problem])
        for key, problem in objects.loc[unusable, ["key", "problem"]].itertuples(index=False, name=None)
    ]
    facts, bad = _measure_all(context, objects[~unusable])
    facts, doubled = _without_doubles(facts)
    findings += [*bad, *doubled, *_without_patient(facts)]
    # A file manager's leftover is no image, so it does not count as a rejected one.
    images = int((objects["problem"] != "junk file").sum())
    reasons = Counter(finding.reason for finding in findings)
    result = ValidationResult(
        id=id_,
        snapshot=snapshot.id,
        facts=context.records.save_table(ValidationResult, id_, "facts", facts[FACTS]),
        findings=context.records.save_table(ValidationResult, id_, "findings", _as_table(findings)),
        images=images,
        accepted=len(facts),
        rejected=images - len(facts),
        by_class={label: int((facts["label"] == label).sum()) for label in CLASSES},
        patients=int(facts.loc[facts["patient"] != "", "patient"].nunique()),
        without_patient=int((facts["patient"] == "").sum()),
        reasons=dict(reasons.most_common()),
        examples=tuple(
            finding for reason in reasons for finding in [f for f in findings if f.reason == reason][:EXAMPLES]
        ),
        checks=check_batch(facts, images=images, rules=rules),
    )
    context.records.save(result, id_)
    return result


def _measure_all(context: Context, objects: pd.DataFrame) -> tuple[pd.DataFrame, list[Finding]]:
    table, findings = measure_all(context, objects)
    good = []
    for row in table.to_dict("records"):
        facts = ImageFacts(**{name: row[name] for name in FACT_NAMES})
        problems = [p for p in judge_image(facts, context.settings.data, {}) if p.reason in _REJECTING]
        findings += [Finding(reason=p.reason, key=row["key"], detail=p.detail) for p in problems]
        good.append(not problems)
    return table.loc[good], findings


def _without_doubles(facts: pd.DataFrame) -> tuple[pd.DataFrame, list[Finding]]:
    """Leave out all images whose pixels are filed under both classes, and all but the first of the others.

    The first is the one that was seen first, so that what arrives later never changes a patient's cells.
    """
    facts = facts.sort_values(["first_seen", "key"], kind="stable")
    disputed = facts.groupby("pixels")["label"].transform("nunique") > 1
    later = facts.duplicated("pixels") & ~disputed
    first = facts.drop_duplicates("pixels").set_index("pixels")["key"].to_dict()
    findings = [
        Finding(reason="both classes", key=key, detail="the same pixels are filed under both classes")
        for key in facts.loc[disputed, "key"]
    ]
    findings += [
        Finding(reason="duplicate", key=key, detail=f"the same pixels as {first[pixels]}")
        for key, pixels in facts.loc[later, ["key", "pixels"]].itertuples(index=False, name=None)
    ]
    return facts[~disputed & ~later].sort_values("key", kind="stable"), findings


def _without_patient(facts: pd.DataFrame) -> list[Finding]:
    return [
        Finding(reason="no patient", key=key, detail="its name tells no patient: used for training only")
        for key in facts.loc[facts["patient"] == "", "key"]
    ]


def _as_table(findings: list[Finding]) -> pd.DataFrame:
    return pd.DataFrame([f.model_dump() for f in findings], columns=["reason", "key", "detail"])


validate_task = stage(validate)
