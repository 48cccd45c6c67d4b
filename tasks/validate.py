"""Validate: decode every image once, measure it, leave the bad ones out by name, judge the batch as a whole.

Bad input costs the bad item, not the night: findings are collected, the originals stay where they are, and an object
that is repaired is taken in on the next night.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from infra.store.keys import data_docs_key
from tasks.cells.measuring import measure_all
from tasks.cells.reference import Reference, reference_of
from tasks.context import Context
from tasks.stage import stage
from validation.batch.data_docs import data_docs_page
from validation.batch.expectations import check_batch
from validation.batch.totals import tonight, totals
from validation.digest import digest
from validation.errors import ObjectMissing
from validation.findings import REASONS, with_severities
from validation.images.duplicates import near_duplicate_findings, without_duplicates
from validation.images.facts import FACT_NAMES, FACTS_VERSION, ImageFacts, judge_image, learn_bounds
from validation.records import CLASSES, ChampionRef, Finding, Snapshot, ValidationResult
from validation.rules import DataRules

log = logging.getLogger(__name__)

# Raise it when the rules of this module change: a result of other rules is another result.
RULES_VERSION = 2
EXAMPLES = 10
FACTS = ["key", "sha256", "label", "patient", "size", *FACT_NAMES]
FINDINGS = ["reason", "severity", "key", "detail", "sha256", "new"]


def validate(context: Context, snapshot: Snapshot, champion: ChampionRef | None = None) -> ValidationResult:
    """Return what is wrong with a snapshot and what is left of it. Never raises for bad data: the result says so.

    ``champion`` is whose training images tell what is usual: the bounds of stain, focus and size, and the drift.
    """
    rules = context.settings.data
    against = champion.candidate if champion else None
    id_ = digest(snapshot.id, rules.model_dump(mode="json"), RULES_VERSION, FACTS_VERSION, against)
    stored = context.records.find(ValidationResult, id_)
    if stored is not None and _is_whole(context, stored):
        context.records.point("validation", stored)
        return stored
    reference = reference_of(context, champion)
    objects = context.records.load_table(snapshot.table)
    objects["new"] = _is_new(context, snapshot, objects)
    sieved = _reject_bad_images(context, objects, reference)
    result = _result(context, id_, snapshot, objects, sieved, reference)
    context.records.save(result, id_)
    context.records.point("validation", result)
    _tell(result)
    return result


def _is_whole(context: Context, stored: ValidationResult) -> bool:
    """Whether its tables are there: those of an old night may have been pruned, and its data has come back."""
    return all(context.store.exists(key) for key in (stored.facts, stored.findings))


@dataclass(frozen=True)
class Screened:
    """What is left of the images, what was found, and the bounds that it was found by."""

    facts: pd.DataFrame
    findings: list[Finding]
    bounds: dict[str, tuple[float, float]]


def _is_new(context: Context, snapshot: Snapshot, objects: pd.DataFrame) -> pd.Series[bool]:
    """Which objects the parent snapshot did not hold in this form; all, when there is no parent."""
    parent = context.records.find(Snapshot, snapshot.parent) if snapshot.parent else None
    if parent is None:
        return pd.Series(True, index=objects.index)
    try:
        before = context.records.load_table(parent.table).set_index("key")["sha256"]
    except ObjectMissing:  # pruned with the report of its night
        return pd.Series(True, index=objects.index)
    return objects["key"].map(before).ne(objects["sha256"]) | ~objects["key"].isin(before.index)


def _reject_bad_images(context: Context, objects: pd.DataFrame, reference: Reference) -> Screened:
    rules = context.settings.data
    unusable = objects["problem"] != ""
    findings = [
        Finding(reason=problem, key=key, detail=REASONS[problem].meaning)
        for key, problem in objects.loc[unusable, ["key", "problem"]].itertuples(index=False, name=None)
    ]
    facts, bad = measure_all(context, objects[~unusable])
    bounds = learn_bounds(facts if reference.facts is None else reference.facts)
    odd = with_severities(_judged(facts, rules, bounds), rules.severities)
    rejected = {finding.key for finding in odd if finding.severity != "warn"}
    facts, doubled = without_duplicates(facts[~facts["key"].isin(rejected)])
    findings += [*bad, *odd, *doubled, *near_duplicate_findings(facts), *_without_patient(facts)]
    return Screened(facts, with_severities(findings, rules.severities), bounds)


def _judged(facts: pd.DataFrame, rules: DataRules, bounds: dict[str, tuple[float, float]]) -> Iterable[Finding]:
    measured = facts[list(FACT_NAMES)].itertuples(index=False, name=None)
    for key, values in zip(facts["key"], measured, strict=True):
        for problem in judge_image(ImageFacts(*values), rules, bounds):
            yield Finding(reason=problem.reason, key=key, detail=problem.detail)


def _without_patient(facts: pd.DataFrame) -> list[Finding]:
    return [
        Finding(reason="no patient", key=key, detail=REASONS["no patient"].meaning)
        for key in facts.loc[facts["patient"] == "", "key"]
    ]


def _result(
    context: Context, id_: str, snapshot: Snapshot, objects: pd.DataFrame, sieved: Screened, reference: Reference
) -> ValidationResult:
    rules, facts, findings = context.settings.data, sieved.facts, sieved.findings
    # A file manager's leftover is no image, so it does not count as a rejected one.
    images = objects[objects["problem"] != "junk file"]
    new = facts[facts["key"].isin(objects.loc[objects["new"], "key"])]
    values = totals(facts, images=len(images))
    values["no finding stops the night"] = sum(finding.severity == "stop" for finding in findings)
    if snapshot.parent is not None:  # on the first night all is new, and the totals have said it
        values |= tonight(new, images=int(images["new"].sum()), rules=rules, reference=reference.facts)
    judged = check_batch(facts, values, rules)
    page = data_docs_page(judged.results, title=f"Validation {id_}")
    context.store.put(data_docs_key(id_), page)
    table = _table(findings, objects)
    return ValidationResult(
        id=id_,
        snapshot=snapshot.id,
        facts=context.records.save_table(ValidationResult, id_, "facts", facts[FACTS]),
        findings=context.records.save_table(ValidationResult, id_, "findings", table),
        images=len(images),
        accepted=len(facts),
        rejected=len(images) - len(facts),
        by_class={label: int((facts["label"] == label).sum()) for label in CLASSES},
        patients=int(facts.loc[facts["patient"] != "", "patient"].nunique()),
        without_patient=int((facts["patient"] == "").sum()),
        reasons=dict(Counter(finding.reason for finding in findings).most_common()),
        new_reasons=dict(Counter(table.loc[table["new"], "reason"]).most_common()),
        examples=_examples(findings),
        checks=judged.checks,
        bounds=sieved.bounds,
        reference=reference.name,
        new=len(new),
        data_docs=data_docs_key(id_),
    )


def _table(findings: list[Finding], objects: pd.DataFrame) -> pd.DataFrame:
    table = pd.DataFrame([finding.model_dump() for finding in findings], columns=FINDINGS[:4])
    return table.merge(objects[["key", "sha256", "new"]], on="key", how="left")[FINDINGS]


def _examples(findings: list[Finding]) -> tuple[Finding, ...]:
    """Return the first ten findings of each reason, so that a record stays small however bad the night."""
    shown: Counter[str] = Counter()
    examples = []
    for finding in findings:
        shown[finding.reason] += 1
        if shown[finding.reason] <= EXAMPLES:
            examples.append(finding)
    return tuple(examples)


def _tell(result: ValidationResult) -> None:
    if result.rejected:
        log.warning("%s of %s images rejected", f"{result.rejected:,}", f"{result.images:,}")
    for check in result.checks:
        if not check.passed:
            log.warning("%s: %s, expected %s", check.name, check.observed, check.expected)


validate_task = stage(validate)
