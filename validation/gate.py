"""The gates of a promotion: each with its value, its interval, its bound and its verdict.

All comparisons are paired, by patient and one-sided, at a level that is the night's share of one error budget, since
each look at the holdout spends part of its error budget (Bonferroni over the looks of a generation).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from validation.records import Gate, Interval, Metrics, Spread, Verdict
from validation.rules import GateRules
from validation.statistics.paired_tests import detectable, further_patients


@dataclass(frozen=True)
class GateResult:
    """The verdict of all gates together."""

    verdict: Verdict
    sentence: str
    gates: tuple[Gate, ...]
    further_patients: int | None = None
    detectable_difference: float | None = None


def level_of_look(rules: GateRules) -> float:
    """Return the one-sided level of tonight's tests: an equal share of the budget."""
    return rules.error_budget / rules.looks


def beats_on_validation(challenger: Metrics, champion: Metrics) -> bool:
    """Return whether a challenger deserves a look: better balanced accuracy on the validation patients."""
    new, old = challenger.balanced_accuracy, champion.balanced_accuracy
    return new is not None and (old is None or new.value > old.value)


def judge_first(challenger: Metrics, rules: GateRules) -> GateResult:
    """Judge a model when there is no champion: only the amount of data and the floors apply."""
    enough = _enough(challenger, rules)
    gates = (*enough, *_floors(challenger, rules))
    failed = [gate for gate in gates if not gate.passed]
    if not failed:
        sentence = "First champion: it meets every floor; there was none to compare it with"
        return GateResult(Verdict.PROMOTED, sentence, gates)
    if not all(gate.passed for gate in enough):
        return _too_little_data(challenger, rules, gates)
    return GateResult(Verdict.KEPT, f"No champion yet, and the challenger fails a floor: {failed[0].sentence}", gates)


def judge(
    challenger: Metrics,
    differences: Mapping[str, Interval],
    rules: GateRules,
    spreads: Mapping[str, Spread] | None = None,
) -> GateResult:
    """Judge a challenger against the champion.

    ``differences`` are challenger minus champion on the same holdout cells; each interval's lower bound is the
    one-sided bound at tonight's level (statistics.metrics.compare). The number of further patients needed is estimated
    from ``spreads`` (statistics.metrics.spreads), without them from the bounds.

    promoted: every gate passes. undecided: nothing counts against the challenger but the evidence is too thin.
    kept: the challenger is not better, or something counts against it.
    """
    spreads, level = spreads or {}, level_of_look(rules)
    spread = spreads.get("balanced_accuracy")
    smallest = detectable(spread.error, spread.effective_patients, level) if spread else None
    return replace(_judged(challenger, differences, rules, spreads, level), detectable_difference=smallest)


def _judged(
    challenger: Metrics,
    differences: Mapping[str, Interval],
    rules: GateRules,
    spreads: Mapping[str, Spread],
    level: float,
) -> GateResult:
    enough, floors = _enough(challenger, rules), _floors(challenger, rules)
    compared = tuple(
        _difference_gate(name, differences.get(metric), bound, level, text)
        for name, metric, bound, text in (
            ("superior balanced accuracy", "balanced_accuracy", 0.0, "better"),
            ("sensitivity not worse", "sensitivity", -rules.sensitivity_margin, "not worse"),
            ("specificity not worse", "specificity", -rules.specificity_margin, "not worse"),
        )
    )
    gates = (*enough, *compared, *floors)
    if all(gate.passed for gate in gates):
        sentence = "The challenger is better than the champion, and worse in nothing that matters"
        return GateResult(Verdict.PROMOTED, sentence, gates)
    if not all(gate.passed for gate in enough):
        return _too_little_data(challenger, rules, gates)
    against = [g for g in compared if g.value is None or g.value <= g.bound] + [g for g in floors if not g.passed]
    if against:
        return GateResult(Verdict.KEPT, f"The champion stays: {against[0].sentence}", gates)
    patients = max(
        _further(gate, spreads.get(_metric(gate)), challenger.patients, level) for gate in compared if not gate.passed
    )
    sentence = (
        f"The challenger looks better, but without the confidence required; about {patients} further holdout patients "
        "would settle it"
    )
    return GateResult(Verdict.UNDECIDED, sentence, gates, patients)


def _too_little_data(challenger: Metrics, rules: GateRules, gates: tuple[Gate, ...]) -> GateResult:
    sentence = f"Too little holdout data to decide: {next(gate.sentence for gate in gates if not gate.passed)}"
    return GateResult(Verdict.UNDECIDED, sentence, gates, _missing_patients(challenger, rules))


def _gate(
    name: str, value: Interval | float | None, bound: float, *, passed: bool, sentence: str, level: float | None = None
) -> Gate:
    low, high = (value.low, value.high) if isinstance(value, Interval) else (None, None)
    number = value.value if isinstance(value, Interval) else value
    return Gate(
        name=name, value=number, low=low, high=high, bound=bound, level=level, passed=passed, sentence=sentence
    )  # fmt: skip


def _difference_gate(name: str, difference: Interval | None, bound: float, level: float, text: str) -> Gate:
    label = name.removeprefix("superior ").removesuffix(" not worse")
    if difference is None:
        sentence = f"{label} cannot be compared: the holdout has no cells of a class"
        return _gate(name, None, bound, passed=False, sentence=sentence, level=level)
    passed, low = difference.low > bound, f"at least {100 * difference.low:+.2f} is sure"
    sentence = (
        f"{label} differs by {100 * difference.value:+.2f} points; "
        f"{low if difference.low > -1 else 'too few patients to be sure of any'} at "
        f"one-sided level {level:.4f}, above {100 * bound:+.2f} is needed: {'' if passed else 'not shown '}{text}"
    )
    return _gate(name, difference, bound, passed=passed, sentence=sentence, level=level)


def _enough(metrics: Metrics, rules: GateRules) -> tuple[Gate, ...]:
    amounts = (
        ("patients", metrics.patients, rules.min_patients),
        ("Parasitized cells", metrics.tp + metrics.fn, rules.min_cells_per_class),
        ("Uninfected cells", metrics.tn + metrics.fp, rules.min_cells_per_class),
    )
    return tuple(
        _gate(
            f"holdout {name}",
            count,
            least,
            passed=count >= least,
            sentence=f"{count} {name} in the holdout, at least {least} needed",
        )
        for name, count, least in amounts
    )


def _floors(metrics: Metrics, rules: GateRules) -> tuple[Gate, ...]:
    floors = (
        ("AUC", metrics.auc, rules.min_auc),
        ("sensitivity", metrics.sensitivity, rules.min_sensitivity),
        ("specificity", metrics.specificity, rules.min_specificity),
    )
    return tuple(
        _gate(
            f"{name} floor",
            interval,
            least,
            passed=interval is not None and interval.value >= least,
            sentence=f"{name} is {interval.value:.4f}, at least {least:.4f} needed"
            if interval
            else f"{name} is not defined, at least {least:.4f} needed",
        )
        for name, interval, least in floors
    )


def _metric(gate: Gate) -> str:
    return gate.name.removeprefix("superior ").removesuffix(" not worse").replace(" ", "_")


def _further(gate: Gate, spread: Spread | None, patients: int, level: float) -> int:
    """Estimate how many more patients would decide a gate, if the difference stays the same.

    Without a spread: the distance of the bound from the value falls with the square root of the patients.
    """
    if gate.value is None or gate.low is None or gate.value <= gate.bound:
        raise ValueError(f"gate {gate.name} cannot be decided by more patients")
    distance = gate.value - gate.bound
    if spread is not None and spread.effective_patients > 0:
        method = "flips" if gate.name.startswith("superior") else "variance"
        return further_patients(method, distance, (spread.error, spread.effective_patients), patients, level)
    needed = patients * ((gate.value - gate.low) / distance) ** 2
    # The bound must be exceeded, not only met.
    return max(1, math.floor(needed) + 1 - patients)


def _missing_patients(metrics: Metrics, rules: GateRules) -> int | None:
    """Estimate how many patients the holdout lacks, by its rarest requirement; None when it lacks a class."""
    positives, negatives = metrics.tp + metrics.fn, metrics.tn + metrics.fp
    if not (metrics.patients and positives and negatives):
        return None
    shares = [rules.min_patients / metrics.patients, *(rules.min_cells_per_class / n for n in (positives, negatives))]
    return max(1, math.ceil(metrics.patients * max(shares)) - metrics.patients)
