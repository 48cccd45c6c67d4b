"""The checks of a batch as a whole, as Great Expectations over its facts.

Its input is one row of facts per image and one row of totals, never pixels: it is slow on wide frames and needs much
memory. Its Data Docs are built from the same results.
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

    ``facts`` has one row per accepted image (label, pixels, width, height); ``totals`` has a value for each check of
    the batch (validation.batch.totals) that applies tonight.
    """
    # It logs each step from its import on, and its progress bars are for notebooks.
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
    """Return the cost of a failed check by these rules: ``warn``, or ``invalid`` data."""
    return "invalid" if rules.severities.get(name, CHECKS[name]) == "stop" else "warn"


def _of_images(rules: DataRules) -> list[Any]:
    import great_expectations.expectations as gxe

    # What is accepted with a warning must not stop the night as a batch.
    least = 1 if severity_of("too small", rules.severities) == "warn" else rules.min_pixels
    size = {"min_value": least, "max_value": rules.max_pixels}
    expected = (
        ("labels are known classes", gxe.ExpectColumnValuesToBeInSet, {"column": "label", "value_set": list(CLASSES)}),
        ("no two images have the same pixels", gxe.ExpectColumnValuesToBeUnique, {"column": "pixels"}),
        ("image width", gxe.ExpectColumnValuesToBeBetween, {"column": "width", **size}),
        ("image height", gxe.ExpectColumnValuesToBeBetween, {"column": "height", **size}),
    )
    return [kind(**arguments, **_noted(name, rules)) for name, kind, arguments in expected]


def _of_totals(totals: Mapping[str, float], rules: DataRules) -> list[Any]:
    import great_expectations.expectations as gxe

    bounds = limits(rules)
    # The maximum of one row is the value itself, which Data Docs then show; for values they would show shares.
    return [
        gxe.ExpectColumnMaxToBeBetween(
            column=_column(name), min_value=bounds[name][0], max_value=bounds[name][1], **_noted(name, rules)
        )
        for name in totals
    ]


def _noted(name: str, rules: DataRules) -> dict[str, Any]:
    return {"severity": "critical" if cost(name, rules) == "invalid" else "warning", "meta": {"check": name}}


def _column(name: str) -> str:
    return name.replace(":", "").replace(",", "").replace(" ", "_").lower()


def _ephemeral_context() -> Any:
    import great_expectations as gx
    from great_expectations.data_context.types.base import DataContextConfig, InMemoryStoreBackendDefaults

    # By default each run leaves an empty folder for a docs site in the temporary folder.
    stores = InMemoryStoreBackendDefaults(init_temp_docs_sites=False)
    return gx.get_context(mode="ephemeral", project_config=DataContextConfig(store_backend_defaults=stores))


def _validated(context: Any, name: str, frame: pd.DataFrame, expectations: list[Any]) -> Any:
    import great_expectations as gx

    suite = context.suites.add_or_update(gx.ExpectationSuite(name=name))
    for expectation in expectations:
        suite.add_expectation(expectation)
    source = context.data_sources.add_or_update_pandas(name)
    batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("whole")
    result = batch.get_batch(batch_parameters={"dataframe": frame}).validate(suite)
    for one in result.results:
        if "observed_value" in one.result:
            # Its renderer refuses NumPy numbers, which its own metrics return.
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
    """Format counts in full, and shares and ratios with the significant digits."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}" if value < 1 else f"{value:,.6g}"
