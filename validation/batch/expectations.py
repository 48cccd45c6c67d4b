"""What is expected of a batch as a whole, as Great Expectations over its facts.

Great Expectations is given one row of facts an image and one row of totals, never pixels: it is slow and hungry on
wide frames. Its Data Docs are built from the same results.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from validation.batch.totals import NO_RATIO, limits
from validation.findings import CHECKS, severity_of
from validation.records import CLASSES, Check
from validation.rules import DataRules


@dataclass(frozen=True)
class BatchChecks:
    """The checks, and Great Expectations' own results by table (``images``, ``batch``), for its Data Docs."""

    checks: tuple[Check, ...]
    results: dict[str, Any]


def check_batch(facts: pd.DataFrame, totals: Mapping[str, float], rules: DataRules) -> BatchChecks:
    """Run all expectations and return one Check each; none stops the others.

    ``facts`` has one row an accepted image (label, pixels, width, height); ``totals`` gives a value for each check of
    the batch (validation.batch.totals) that applies tonight.
    """
    # It announces each step from its import on, and its progress bars belong to notebooks.
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    context = _ephemeral_context()
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    row = pd.DataFrame([{_column(name): float(value) for name, value in totals.items()}])
    results = {}
    if len(facts):
        results["images"] = _validated(context, "images", facts, _of_images(rules))
    results["batch"] = _validated(context, "batch", row, _of_totals(totals, rules))
    checks = [check for name, result in results.items() for check in _checks(name, result, len(facts), totals, rules)]
    return BatchChecks(tuple(checks), results)


def cost(name: str, rules: DataRules) -> Any:
    """Return what a failed check costs under these rules: ``warn``, or ``invalid`` data."""
    return "invalid" if rules.severities.get(name, CHECKS[name]) == "stop" else "warn"


def _of_images(rules: DataRules) -> dict[str, Any]:
    import great_expectations.expectations as gxe

    # What is accepted with a warning must not stop the night as a batch.
    low = 1 if severity_of("too small", rules.severities) == "warn" else rules.min_pixels
    high = rules.max_pixels
    made: dict[str, tuple[Any, dict[str, Any]]] = {
        "labels are known classes": (
            gxe.ExpectColumnValuesToBeInSet,
            {"column": "label", "value_set": list(CLASSES)},
        ),
        "no two images have the same pixels": (gxe.ExpectColumnValuesToBeUnique, {"column": "pixels"}),
        "image width": (
            gxe.ExpectColumnValuesToBeBetween,
            {"column": "width", "min_value": low, "max_value": high},
        ),
        "image height": (
            gxe.ExpectColumnValuesToBeBetween,
            {"column": "height", "min_value": low, "max_value": high},
        ),
    }
    return {name: _noted(kind, name, rules, arguments) for name, (kind, arguments) in made.items()}


def _of_totals(totals: Mapping[str, float], rules: DataRules) -> dict[str, Any]:
    import great_expectations.expectations as gxe

    bounds = limits(rules)
    return {
        # The greatest of one row is the value itself, which Data Docs then show; of values they would show shares.
        name: _noted(
            gxe.ExpectColumnMaxToBeBetween,
            name,
            rules,
            {"column": _column(name), "min_value": bounds[name][0], "max_value": bounds[name][1]},
        )
        for name in totals
    }


def _noted(kind: Any, name: str, rules: DataRules, arguments: dict[str, Any]) -> Any:
    severity = "critical" if cost(name, rules) == "invalid" else "warning"
    return kind(**arguments, severity=severity, meta={"check": name})


def _column(name: str) -> str:
    return name.replace(":", "").replace(",", "").replace(" ", "_").lower()


def _ephemeral_context() -> Any:
    import great_expectations as gx
    from great_expectations.data_context.types.base import DataContextConfig, InMemoryStoreBackendDefaults

    # Its default leaves an empty folder for a docs site in the temporary folder on every run.
    stores = InMemoryStoreBackendDefaults(init_temp_docs_sites=False)
    return gx.get_context(mode="ephemeral", project_config=DataContextConfig(store_backend_defaults=stores))


def _validated(context: Any, name: str, frame: pd.DataFrame, expectations: Mapping[str, Any]) -> Any:
    import great_expectations as gx

    suite = context.suites.add_or_update(gx.ExpectationSuite(name=name))
    for expectation in expectations.values():
        suite.add_expectation(expectation)
    source = context.data_sources.add_or_update_pandas(name)
    batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("whole")
    result = batch.get_batch(batch_parameters={"dataframe": frame}).validate(suite)
    for one in result.results:
        if "observed_value" in one.result:
            # Its renderer refuses NumPy's numbers, which its own metrics return.
            one.result["observed_value"] = float(one.result["observed_value"])
    return result


def _checks(table: str, result: Any, images: int, totals: Mapping[str, float], rules: DataRules) -> Iterator[Check]:
    for one in result.results:
        config = one.expectation_config
        name = config.meta["check"]
        yield Check(
            name=name,
            expected=_expected(config.kwargs),
            observed=_counted(one.result, images) if table == "images" else _observed(totals[name]),
            passed=bool(one.success),
            severity=cost(name, rules),
        )


def _expected(given: Mapping[str, Any]) -> str:
    if "value_set" in given:
        return "one of " + ", ".join(map(str, given["value_set"]))
    low, high = given.get("min_value"), given.get("max_value")
    if low is None and high is None:
        return "unique"
    if high is None:
        return f"at least {_number(float(low or 0))}"
    return f"at most {_number(high)}" if low in (None, 0, 1) else f"{_number(float(low))} to {_number(high)}"


def _observed(value: float) -> str:
    return "one class is missing" if value == NO_RATIO else _number(value)


def _counted(result: Mapping[str, Any], images: int) -> str:
    count = int(result.get("unexpected_count", 0))
    return f"{count:,} of {images:,} images do not fit" if count else f"all {images:,} images fit"


def _number(value: float) -> str:
    """Counts whole, however large; shares and ratios to the digits that matter."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}" if value < 1 else f"{value:,.6g}"
