"""The gates of a promotion: each with its value, its interval, its bound and its verdict.

All comparisons are paired, by patient and one-sided. Their level is the night's equal share of one error budget
(Bonferroni over the looks of a generation), since each look at a holdout wears it out. Only numbers are here;
tasks/reporting/words turns them into sentences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from validation.records import Gate, Interval, Metrics, Spread, Verdict
from validation.rules import GateRules
from validation.statistics.paired_tests import detectable, further_patients


@dataclass(frozen=True)
class GateResult:
    """The verdict of all gates. ``decisive`` is the failed gate that settled it, if a single one did."""

    verdict: Verdict
    gates: tuple[Gate, ...] = ()
    decisive: Gate | None = None
    further_patients: int | None = None
    detectable_difference: float | None = None


def level_of_look(rules: GateRules) -> float:
    """Return the one-sided level of tonight's tests: an equal share of the budget."""
    return rules.error_budget / rules.looks


def beats_on_validation(challenger: Metrics, champion: Metrics) -> bool:
    """Whether a challenger is worth a look at the holdout: better balanced accuracy on the validation patients."""
    new, old = challenger.balanced_accuracy, champion.balanced_accuracy
    return new is not None and (old is None or new.value > old.value)


def judge_first(challenger: Metrics, rules: GateRules) -> GateResult:
    """Judge a model that has no champion to beat: only the amount of data and the floors apply."""
    return _judge(challenger, {}, rules, {})


def judge(
    challenger: Metrics,
    differences: Mapping[str, Interval],
    rules: GateRules,
    spreads: Mapping[str, Spread] | None = None,
) -> GateResult:
    """Judge a challenger against the champion.

    ``differences`` are challenger minus champion on the same holdout cells; each interval's lower bound is the
    one-sided bound at tonight's level (statistics.metrics.compare). ``spreads`` (statistics.metrics.spreads) give the
    number of further patients that would decide; without them it is estimated from the bounds.

    promoted: every gate passes. undecided: no gate speaks against the challenger but the evidence is too thin.
    kept: the challenger is not better, or a gate speaks against it.
    """
    level = level_of_look(rules)
    compared = {
        metric: _comparison(name, differences.get(metric), bound, level)
        for name, metric, bound in (
            ("superior balanced accuracy", "balanced_accuracy", 0.0),
            ("sensitivity not worse", "sensitivity", -rules.sensitivity_margin),
            ("specificity not worse", "specificity", -rules.specificity_margin),
        )
    }
    return _judge(challenger, compared, rules, spreads or {})


def _judge(
    challenger: Metrics, compared: Mapping[str, Gate], rules: GateRules, spreads: Mapping[str, Spread]
) -> GateResult:
    infected, clear = challenger.tp + challenger.fn, challenger.tn + challenger.fp
    enough = (
        _minimum("holdout patients", challenger.patients, rules.min_patients),
        _minimum("holdout Parasitized cells", infected, rules.min_cells_per_class),
        _minimum("holdout Uninfected cells", clear, rules.min_cells_per_class),
    )
    floors = (
        _minimum("AUC floor", challenger.auc, rules.min_auc),
        _minimum("sensitivity floor", challenger.sensitivity, rules.min_sensitivity),
        _minimum("specificity floor", challenger.specificity, rules.min_specificity),
    )
    gates = (*enough, *compared.values(), *floors)
    spread = spreads.get("balanced_accuracy")
    smallest = detectable(spread.error, spread.effective_patients, level_of_look(rules)) if spread else None

    def result(verdict: Verdict, decisive: Gate | None = None, further: int | None = None) -> GateResult:
        return GateResult(verdict, gates, decisive, further, smallest)

    if all(gate.passed for gate in gates):
        return result(Verdict.PROMOTED)
    if lacking := next((gate for gate in enough if not gate.passed), None):
        return result(Verdict.UNDECIDED, lacking, _missing_patients(challenger, rules))
    against = [gate for gate in compared.values() if gate.value is None or gate.value <= gate.bound]
    if against := [*against, *(gate for gate in floors if not gate.passed)]:
        return result(Verdict.KEPT, against[0])
    further = max(
        _further(gate, spreads.get(metric), challenger.patients) for metric, gate in compared.items() if not gate.passed
    )
    return result(Verdict.UNDECIDED, further=further)


def _comparison(name: str, difference: Interval | None, bound: float, level: float) -> Gate:
    """Return the gate that a difference passes with its lower bound; an undefined one fails."""
    value, low, high = (difference.value, difference.low, difference.high) if difference else (None, None, None)
    passed = low is not None and low > bound
    return Gate(name=name, value=value, low=low, high=high, bound=bound, level=level, passed=passed, sentence="")


def _minimum(name: str, measured: Interval | float | None, bound: float) -> Gate:
    """Return the gate that a count or a metric passes by reaching ``bound``; an undefined metric fails."""
    interval = measured if isinstance(measured, Interval) else None
    value = measured.value if isinstance(measured, Interval) else measured
    low, high = (interval.low, interval.high) if interval else (None, None)
    passed = value is not None and value >= bound
    return Gate(name=name, value=value, low=low, high=high, bound=bound, level=None, passed=passed, sentence="")


def _further(gate: Gate, spread: Spread | None, patients: int) -> int:
    """Estimate how many more patients would let a gate pass, if the difference stays the same.

    Without a spread: the distance of the bound from the value falls with the square root of the patients.
    """
    if gate.value is None or gate.low is None or gate.level is None or gate.value <= gate.bound:
        raise ValueError(f"no number of patients would let the gate {gate.name} pass")
    distance = gate.value - gate.bound
    if spread is not None and spread.effective_patients > 0:
        method = "flips" if gate.name.startswith("superior") else "variance"
        return further_patients(method, distance, (spread.error, spread.effective_patients), patients, gate.level)
    needed = patients * ((gate.value - gate.low) / distance) ** 2
    # The bound has to be passed, not met.
    return max(1, math.floor(needed) + 1 - patients)


def _missing_patients(metrics: Metrics, rules: GateRules) -> int | None:
    """Estimate how many patients the holdout lacks, by its rarest requirement; None where a class was never seen."""
    positives, negatives = metrics.tp + metrics.fn, metrics.tn + metrics.fp
    if not (metrics.patients and positives and negatives):
        return None
    shares = [rules.min_patients / metrics.patients, *(rules.min_cells_per_class / n for n in (positives, negatives))]
    return max(1, math.ceil(metrics.patients * max(shares)) - metrics.patients)
