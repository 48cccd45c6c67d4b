"""The checks of a batch as a whole, as Great Expectations over its facts.

Its input is one row of facts per image and one row of totals, never pixels: it is slow on wide frames and needs much
memory. Suites, validation definitions and checkpoints are Great Expectations' own, in a project folder that its users
can open; the Data Docs are built from the same results.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from validation.batch.totals import NO_RATIO, limits
from validation.findings import CHECKS, severity_of
from validation.records import CLASSES, Check
from validation.rules import DataRules

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchChecks:
    """The checks, and Great Expectations' own results by table (``images``, ``batch``), for its Data Docs."""

    checks: tuple[Check, ...]
    results: dict[str, Any]


def check_batch(
    facts: pd.DataFrame, totals: Mapping[str, float], rules: DataRules, project: Path | None = None
) -> BatchChecks:
    """Run all expectations and return one Check each; none stops the others.

    ``facts`` has one row per accepted image (label, pixels, width, height); ``totals`` has a value for each check of
    the batch (validation.batch.totals) that applies tonight. ``project``: a folder of its own, which is replaced by a
    Great Expectations project with what was expected and found. A folder that cannot be written costs only that.
    """
    # It logs each step from its import on, and its progress bars are for notebooks.
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    if project is not None:
        try:
            shutil.rmtree(project, ignore_errors=True)
            return _checked(_context_in(project), facts, totals, rules)
        except OSError as error:
            log.warning("no Great Expectations project in %s: %s", project, error)
    return _checked(_ephemeral_context(), facts, totals, rules)


def _checked(context: Any, facts: pd.DataFrame, totals: Mapping[str, float], rules: DataRules) -> BatchChecks:
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    row = pd.DataFrame([{name: float(value) for name, value in totals.items()}])
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
    from validation.batch.total import ExpectBatchTotalToBeBetween

    bounds, expected = limits(rules), []
    for name in totals:
        low, high = bounds[name]
        expected.append(ExpectBatchTotalToBeBetween(column=name, min_value=low, max_value=high, **_noted(name, rules)))
    return expected


def _noted(name: str, rules: DataRules) -> dict[str, Any]:
    return {"severity": "critical" if cost(name, rules) == "invalid" else "warning", "meta": {"check": name}}


def _context_in(project: Path) -> Any:
    import great_expectations as gx

    context = gx.get_context(mode="file", project_root_dir=project)
    # Its telemetry is off for whoever opens the project, too.
    context.config.analytics_enabled = False
    context.variables.save()
    return context


def _ephemeral_context() -> Any:
    import great_expectations as gx
    from great_expectations.data_context.types.base import DataContextConfig, InMemoryStoreBackendDefaults

    # By default each run leaves an empty folder for a docs site in the temporary folder.
    stores = InMemoryStoreBackendDefaults(init_temp_docs_sites=False)
    return gx.get_context(mode="ephemeral", project_config=DataContextConfig(store_backend_defaults=stores))


def _validated(context: Any, name: str, frame: pd.DataFrame, expectations: list[Any]) -> Any:
    """Define and run the checkpoint called ``name``; return the result of its one validation."""
    import great_expectations as gx

    suite = context.suites.add(gx.ExpectationSuite(name=name, expectations=expectations))
    source = context.data_sources.add_pandas(name)
    batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("whole")
    validation = gx.ValidationDefinition(name=name, data=batch, suite=suite)
    checkpoint = gx.Checkpoint(name=name, validation_definitions=[context.validation_definitions.add(validation)])
    found = context.checkpoints.add(checkpoint).run(batch_parameters={"dataframe": frame})
    [result] = found.run_results.values()
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
