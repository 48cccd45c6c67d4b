"""A custom expectation of Great Expectations: one total of a batch lies within its bounds.

Importing this module registers it, which whoever opens a night's context by themselves needs. It loads Great
Expectations, so this project imports it inside functions only.
"""

from __future__ import annotations

from typing import Any

from great_expectations.execution_engine import PandasExecutionEngine
from great_expectations.expectations.expectation import ColumnAggregateExpectation
from great_expectations.expectations.metrics import ColumnAggregateMetricProvider, column_aggregate_value
from great_expectations.render.renderer_configuration import RendererValueType

METRIC = "column.batch_total"


class BatchTotal(ColumnAggregateMetricProvider):  # type: ignore[misc]
    """The value of a total: a table of totals has one row, and a column for each."""

    metric_name = METRIC

    @column_aggregate_value(engine=PandasExecutionEngine)  # type: ignore[untyped-decorator]
    def _pandas(cls, column: Any, **_: Any) -> float:  # noqa: N805
        [value] = column
        return float(value)


class ExpectBatchTotalToBeBetween(ColumnAggregateExpectation):  # type: ignore[misc]
    """The total called ``column`` is at least ``min_value`` and at most ``max_value``, where these are given."""

    min_value: float | None = None
    max_value: float | None = None

    metric_dependencies = (METRIC,)
    success_keys = ("min_value", "max_value")

    @classmethod
    def _prescriptive_template(cls, renderer_configuration: Any) -> Any:
        """Set the sentence that is shown here and wherever the project is opened."""
        renderer_configuration.add_param(name="column", param_type=RendererValueType.STRING)
        bounds = []
        for name, words in (("min_value", "at least"), ("max_value", "at most")):
            renderer_configuration.add_param(name=name, param_type=RendererValueType.NUMBER)
            if getattr(renderer_configuration.params, name, None) is not None:
                bounds.append(f"{words} ${name}")
        renderer_configuration.template_str = f"$column: {' and '.join(bounds)}"
        return renderer_configuration

    def _validate(self, metrics: Any, runtime_configuration: Any = None, execution_engine: Any = None) -> Any:
        return self._validate_metric_value_between(
            metric_name=METRIC,
            metrics=metrics,
            runtime_configuration=runtime_configuration,
            execution_engine=execution_engine,
        )
