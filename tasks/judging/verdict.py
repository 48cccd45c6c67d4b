"""The verdict on an evaluation, from its numbers alone: when it is decided, and again before a promotion."""

from __future__ import annotations

from validation.gate import GateResult, judge, judge_first
from validation.records import Evaluation
from validation.rules import GateRules


def verdict_of(evaluation: Evaluation, rules: GateRules) -> GateResult:
    """Judge an evaluation by the gate; without a champion only the floors apply."""
    if evaluation.champion is None:
        return judge_first(evaluation.challenger_metrics, rules)
    return judge(
        evaluation.challenger_metrics,
        evaluation.differences,
        rules,
        evaluation.spreads,
        evaluation.reference_differences or None,
    )
