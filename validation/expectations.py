"""What is expected of a batch as a whole, as Great Expectations over its facts.

Great Expectations is given one row of facts an image and one row of totals, never pixels: it is slow and hungry on
wide frames.
"""

from __future__ import annotations

import logging
from typing import Any, Literal, cast

import pandas as pd

from validation.records import CLASSES, NEGATIVE, POSITIVE, Check
from validation.rules import DataRules

Severity = Literal["warn", "invalid"]


def totals(facts: pd.DataFrame, *, images: int) -> pd.DataFrame:
    """Return the batch's totals as one row, from one row an accepted image (columns label, patient, pixels)."""
    counts = {label: int((facts["label"] == label).sum()) for label in CLASSES}
    known = facts[facts["patient"] != ""]
    patients = {label: int(known.loc[known["label"] == label, "patient"].nunique()) for label in CLASSES}
    smaller = min(counts.values())
    return pd.DataFrame(
        [
            {
                "parasitized_cells": counts[POSITIVE],
                "uninfected_cells": counts[NEGATIVE],
                "parasitized_patients": patients[POSITIVE],
                "uninfected_patients": patients[NEGATIVE],
                # Without one of the classes the ratio is infinite, which no table keeps well.
                "class_ratio": max(counts.values()) / smaller if smaller else 1e9,
                "rejected_share": (images - len(facts)) / images if images else 0.0,
                "without_patient_share": float((facts["patient"] == "").mean()) if len(facts) else 0.0,
            }
        ]
    )


def check_batch(facts: pd.DataFrame, *, images: int, rules: DataRules) -> tuple[Check, ...]:
    """Run all expectations and return one Check each; none stops the others.

    ``facts`` has one row an accepted image; ``images`` is how many there were before any was left out.
    """
    # It announces each step from its import on, and its progress bars belong to notebooks.
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    import great_expectations.expectations as gxe

    context = _ephemeral_context()
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}

    def between(column: str, low: float | None, high: float | None) -> Any:
        return gxe.ExpectColumnValuesToBeBetween(column=column, min_value=low, max_value=high)

    per_image: list[tuple[str, Severity, Any]] = [
        (
            "labels are known classes",
            "invalid",
            gxe.ExpectColumnValuesToBeInSet(column="label", value_set=list(CLASSES)),
        ),
        ("no two images have the same pixels", "invalid", gxe.ExpectColumnValuesToBeUnique(column="pixels")),
        ("image width", "invalid", between("width", rules.min_pixels, rules.max_pixels)),
        ("image height", "invalid", between("height", rules.min_pixels, rules.max_pixels)),
    ]
    least, people = rules.min_cells_per_class, rules.min_patients_per_class
    per_batch: list[tuple[str, Severity, Any]] = [
        ("Parasitized cells", "invalid", between("parasitized_cells", least, None)),
        ("Uninfected cells", "invalid", between("uninfected_cells", least, None)),
        ("patients with Parasitized cells", "invalid", between("parasitized_patients", people, None)),
        ("patients with Uninfected cells", "invalid", between("uninfected_patients", people, None)),
        ("class ratio, larger over smaller", "invalid", between("class_ratio", 1, rules.max_class_ratio)),
        ("class ratio is comfortable", "warn", between("class_ratio", 1, rules.warn_class_ratio)),
        ("share of rejected images", "invalid", between("rejected_share", 0, rules.max_rejected_share)),
        ("share of rejected images is comfortable", "warn", between("rejected_share", 0, rules.warn_rejected_share)),
        ("share of images without a patient", "warn", between("without_patient_share", 0, 0.05)),
    ]
    row = totals(facts, images=images)
    return (
        *(_check(context, "images", facts, *entry) for entry in (per_image if len(facts) else [])),
        *(_check(context, "batch", row, *entry) for entry in per_batch),
    )


def _ephemeral_context() -> Any:
    import great_expectations as gx
    from great_expectations.data_context.types.base import DataContextConfig, InMemoryStoreBackendDefaults

    # Its default leaves an empty folder for a docs site in the temporary folder on every run.
    stores = InMemoryStoreBackendDefaults(init_temp_docs_sites=False)
    return gx.get_context(mode="ephemeral", project_config=DataContextConfig(store_backend_defaults=stores))


def _check(context: Any, name: str, frame: pd.DataFrame, title: str, severity: Severity, expectation: Any) -> Check:
    source = context.data_sources.add_or_update_pandas(name)
    batch = source.add_dataframe_asset(title).add_batch_definition_whole_dataframe("whole")
    result = batch.get_batch(batch_parameters={"dataframe": frame}).validate(expectation)
    return Check(
        name=title,
        expected=_expected(expectation),
        observed=_observed(name, frame, result.result, str(expectation.column)),
        passed=bool(result.success),
        severity=severity,
    )


def _expected(expectation: Any) -> str:
    if hasattr(expectation, "value_set"):
        return "one of " + ", ".join(map(str, expectation.value_set))
    low: Any = getattr(expectation, "min_value", None)
    high: Any = getattr(expectation, "max_value", None)
    if low is None and high is None:
        return "unique"
    if high is None:
        return f"at least {_number(low)}"
    return f"at most {_number(high)}" if low in (None, 0, 1) else f"{_number(low)} to {_number(high)}"


def _observed(name: str, frame: pd.DataFrame, result: dict[str, Any], column: str) -> str:
    # A batch of one image is one row too, so the number of rows does not tell totals from images.
    if name == "batch":
        value = cast(float, frame[column].iloc[0])
        return "one class is missing" if value == 1e9 else _number(value)
    count = int(result.get("unexpected_count", 0))
    return f"{count:,} of {len(frame):,} images do not fit" if count else f"all {len(frame):,} images fit"


def _number(value: float) -> str:
    """Counts whole, however large; shares and ratios to the digits that matter."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}" if value < 1 else f"{value:,.6g}"
