"""Validate: decode every image once, measure it, reject the bad ones by name, judge the batch as a whole.

Bad input costs the bad item, not the night: findings are collected, the originals stay where they are, and a repaired
object is accepted on the next night.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import pandas as pd

from infra.store.keys import data_docs_key
from infra.store.records import DIGITS
from tasks.cells.measuring import measure_all
from tasks.cells.near_pairs import near_pairs
from tasks.cells.reference import Reference, reference_of
from tasks.context import Context
from tasks.nights import undamaged
from tasks.stage import stage
from validation.batch.data_docs import data_docs_page
from validation.batch.expectations import check_batch
from validation.batch.totals import tonight, totals
from validation.digest import digest, sha256
from validation.findings import REASONS, with_severities
from validation.images.duplicates import near_duplicate_findings, without_duplicates
from validation.images.facts import FACT_NAMES, FACTS_VERSION, ImageFacts, judge_image, learn_bounds
from validation.records import CLASSES, ChampionRef, Finding, Snapshot, ValidationResult
from validation.rules import DataRules

log = logging.getLogger(__name__)

# Raise it when the rules of this module change: the id of a result depends on it.
RULES_VERSION = 3
EXAMPLES = 10
FACTS = ["key", "sha256", "label", "patient", "size", *FACT_NAMES]
FINDINGS = ["reason", "severity", "key", "detail", "sha256", "new"]
FINDINGS_BY = ["reason", "key", "detail"]


def validate(context: Context, snapshot: Snapshot, champion: ChampionRef | None = None) -> ValidationResult:
    """Return the findings on a snapshot and what is accepted of it. Never raises for bad data: the result says so.

    The training images of ``champion`` are the reference for the bounds of stain, focus and size, and for drift.
    """
    rules = context.settings.data
    against = champion.candidate if champion else None
    id_ = digest(snapshot.id, rules.model_dump(mode="json"), RULES_VERSION, FACTS_VERSION, against)
    # The tables of an old night may have been pruned, and its data may be back.
    if (stored := context.records.find_whole(ValidationResult, id_)) is not None:
        context.records.point("validation", stored)
        return stored
    reference = reference_of(context, champion)
    objects = context.records.load_table(snapshot.table)
    objects["new"] = _is_new(context, snapshot, objects)
    screened = _reject_bad_images(context, objects, reference)
    result = _result(context, id_, snapshot, objects, screened, reference)
    result = context.records.save_once(result, id_)
    context.records.point("validation", result)
    if result.rejected:
        log.warning("%s of %s images rejected", f"{result.rejected:,}", f"{result.images:,}")
    for check in result.checks:
        if not check.passed:
            log.warning("%s: %s, expected %s", check.name, check.observed, check.expected)
    return result


@dataclass(frozen=True)
class Screened:
    """The facts of the accepted images, the findings, and the bounds that were applied."""

    facts: pd.DataFrame
    findings: list[Finding]
    bounds: dict[str, tuple[float, float]]


def _is_new(context: Context, snapshot: Snapshot, objects: pd.DataFrame) -> pd.Series[bool]:
    """Whether each object is not in the parent snapshot in this form; all are new without a parent."""
    all_new = pd.Series(True, index=objects.index)
    if snapshot.parent is None:
        return all_new
    parent = context.records.find_whole(Snapshot, snapshot.parent)
    if parent is None:  # pruned with the report of its night
        return all_new
    before = context.records.load_table(parent.table).set_index("key")["sha256"]
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
    facts, duplicates = without_duplicates(facts[~facts["key"].isin(rejected)])
    without_patient = [
        Finding(reason="no patient", key=key, detail=REASONS["no patient"].meaning)
        for key in facts.loc[facts["patient"] == "", "key"]
    ]
    near = near_duplicate_findings(facts, partial(near_pairs, context))
    findings += [*bad, *odd, *duplicates, *near, *without_patient]
    return Screened(facts, with_severities(findings, rules.severities), bounds)


def _judged(facts: pd.DataFrame, rules: DataRules, bounds: dict[str, tuple[float, float]]) -> Iterable[Finding]:
    measured = facts[list(FACT_NAMES)].itertuples(index=False, name=None)
    for key, values in zip(facts["key"], measured, strict=True):
        for problem in judge_image(ImageFacts(*values), rules, bounds):
            yield Finding(reason=problem.reason, key=key, detail=problem.detail)


def _result(
    context: Context, id_: str, snapshot: Snapshot, objects: pd.DataFrame, screened: Screened, reference: Reference
) -> ValidationResult:
    rules, facts, findings = context.settings.data, screened.facts, screened.findings
    # A file manager's leftover is not an image, so not a rejected one either.
    images = objects[objects["problem"] != "junk file"]
    new = facts[facts["key"].isin(objects.loc[objects["new"], "key"])]
    values = totals(facts, images=len(images))
    values["no finding stops the night"] = sum(finding.severity == "stop" for finding in findings)
    if snapshot.parent is not None:  # on the first night all is new, and the totals cover it
        values |= tonight(new, images=int(images["new"].sum()), rules=rules, reference=reference.facts)
    judged = check_batch(facts, values, rules, context.workspace.expectations)
    docs = data_docs_page(judged.results, title=f"Validation {id_}")
    docs_key = data_docs_key(id_, sha256(docs)[:DIGITS])
    context.store.put(docs_key, docs)
    table = pd.DataFrame([finding.model_dump() for finding in findings], columns=FINDINGS[:4])
    table = table.merge(objects[["key", "sha256", "new"]], on="key", how="left")[FINDINGS]
    table = table.sort_values(FINDINGS_BY, kind="stable")
    before = undamaged(lambda: context.records.latest("validation", ValidationResult))
    save = partial(context.records.save_table, ValidationResult, id_)
    return ValidationResult(
        id=id_,
        snapshot=snapshot.id,
        facts=save("facts", facts[FACTS], by=["key"], before=before.facts if before else None),
        findings=save("findings", table, by=FINDINGS_BY, before=before.findings if before else None),
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
        bounds=screened.bounds,
        reference=reference.name,
        new=len(new),
        data_docs=docs_key,
    )


def _examples(findings: list[Finding]) -> tuple[Finding, ...]:
    """Return the first ten findings of each reason, so that the record stays small on a bad night."""
    shown: Counter[str] = Counter()
    examples = []
    for finding in findings:
        shown[finding.reason] += 1
        if shown[finding.reason] <= EXAMPLES:
            examples.append(finding)
    return tuple(examples)


validate_task = stage(validate)
