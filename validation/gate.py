"""The gates of a promotion: each with its value, its interval, its bound and its verdict.

All comparisons are paired, by patient and one-sided, at a level that is the night's share of one error budget, since
a holdout that is looked at every night wears out (Bonferroni over the looks of a generation).
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
    """What the gates say together."""

    verdict: Verdict
    sentence: str
    gates: tuple[Gate, ...]
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
    gates = (*_enough(challenger, rules), *_floors(challenger, rules))
    failed = [gate for gate in gates if not gate.passed]
    if not failed:
        return GateResult(
            Verdict.PROMOTED, "First champion: it meets every floor; there was none to compare it with", gates
        )
    if any(gate.name.startswith("holdout") for gate in failed):
        return GateResult(
            Verdict.UNDECIDED,
            f"Too little holdout data to decide: {failed[0].sentence}",
            gates,
            _missing_patients(challenger, rules),
        )
    return GateResult(Verdict.KEPT, f"No champion yet, and the challenger fails a floor: {failed[0].sentence}", gates)


def judge(
    challenger: Metrics,
    differences: Mapping[str, Interval],
    rules: GateRules,
    spreads: Mapping[str, Spread] | None = None,
) -> GateResult:
    """Judge a challenger against the champion.

    ``differences`` are challenger minus champion on the same holdout cells; each interval's lower bound is the
    one-sided bound at tonight's level (statistics.metrics.compare). ``spreads`` (statistics.metrics.spreads) tell how
    many further patients it would take; without them that is estimated from the bounds.

    promoted: every gate passes. undecided: nothing speaks against the challenger but the evidence is too thin.
    kept: the challenger is not better, or something speaks against it.
    """
    judgement = _judged(challenger, differences, rules, spreads or {})
    return replace(judgement, detectable_difference=_detectable(spreads or {}, level_of_look(rules)))


def _judged(
    challenger: Metrics, differences: Mapping[str, Interval], rules: GateRules, spreads: Mapping[str, Spread]
) -> GateResult:
    level = level_of_look(rules)
    enough = _enough(challenger, rules)
    compared = tuple(
        _difference_gate(name, differences.get(metric), bound, level, text)
        for name, metric, bound, text in (
            ("superior balanced accuracy", "balanced_accuracy", 0.0, "better"),
            ("sensitivity not worse", "sensitivity", -rules.sensitivity_margin, "not worse"),
            ("specificity not worse", "specificity", -rules.specificity_margin, "not worse"),
        )
    )
    floors = _floors(challenger, rules)
    gates = (*enough, *compared, *floors)
    if all(gate.passed for gate in gates):
        return GateResult(
            Verdict.PROMOTED, "The challenger is better than the champion, and worse in nothing that matters", gates
        )
    if not all(gate.passed for gate in enough):
        first = next(gate for gate in enough if not gate.passed)
        return GateResult(
            Verdict.UNDECIDED,
            f"Too little holdout data to decide: {first.sentence}",
            gates,
            _missing_patients(challenger, rules),
        )
    against = [g for g in compared if g.value is None or g.value <= g.bound] + [g for g in floors if not g.passed]
    if against:
        return GateResult(Verdict.KEPT, f"The champion stays: {against[0].sentence}", gates)
    patients = max(
        _further(gate, spreads.get(_metric(gate)), challenger.patients, level) for gate in compared if not gate.passed
    )
    sentence = f"The challenger looks better, but not surely so; about {patients} further holdout patients would tell"
    return GateResult(Verdict.UNDECIDED, sentence, gates, patients)


def _difference_gate(name: str, difference: Interval | None, bound: float, level: float, text: str) -> Gate:
    label = name.removeprefix("superior ").removesuffix(" not worse")
    if difference is None:
        sentence = f"{label} cannot be compared: the holdout has no cells of a class"
        return Gate(
            name=name, value=None, low=None, high=None, bound=bound, level=level, passed=False, sentence=sentence
        )
    passed = difference.low > bound
    sure = (
        f"at least {100 * difference.low:+.2f} is sure" if difference.low > -1 else "too few patients to be sure of any"
    )
    sentence = (
        f"{label} differs by {100 * difference.value:+.2f} points; {sure} at "
        f"one-sided level {level:.4f}, above {100 * bound:+.2f} is needed: {'' if passed else 'not shown '}{text}"
    )
    return Gate(
        name=name,
        value=difference.value,
        low=difference.low,
        high=difference.high,
        bound=bound,
        level=level,
        passed=passed,
        sentence=sentence,
    )


def _enough(metrics: Metrics, rules: GateRules) -> tuple[Gate, ...]:
    amounts = (
        ("holdout patients", metrics.patients, rules.min_patients),
        ("holdout Parasitized cells", metrics.tp + metrics.fn, rules.min_cells_per_class),
        ("holdout Uninfected cells", metrics.tn + metrics.fp, rules.min_cells_per_class),
    )
    return tuple(
        Gate(
            name=name,
            value=found,
            low=None,
            high=None,
            bound=least,
            level=None,
            passed=found >= least,
            sentence=f"{found} {name.removeprefix('holdout ')} in the holdout, at least {least} needed",
        )
        for name, found, least in amounts
    )


def _floors(metrics: Metrics, rules: GateRules) -> tuple[Gate, ...]:
    floors = (
        ("AUC floor", metrics.auc, rules.min_auc),
        ("sensitivity floor", metrics.sensitivity, rules.min_sensitivity),
        ("specificity floor", metrics.specificity, rules.min_specificity),
    )
    gates = []
    for name, interval, least in floors:
        value = interval.value if interval else None
        shown = "not defined" if value is None else f"{value:.4f}"
        gates.append(
            Gate(
                name=name,
                value=value,
                low=interval.low if interval else None,
                high=interval.high if interval else None,
                bound=least,
                level=None,
                passed=value is not None and value >= least,
                sentence=f"{name.removesuffix(' floor')} is {shown}, at least {least:.4f} needed",
            )
        )
    return tuple(gates)


def _metric(gate: Gate) -> str:
    return gate.name.removeprefix("superior ").removesuffix(" not worse").replace(" ", "_")


def _further(gate: Gate, spread: Spread | None, patients: int, level: float) -> int:
    """Estimate how many more patients would settle a gate, if the difference stays what it is.

    Without a spread: the distance of the bound from the value falls with the square root of the patients.
    """
    if gate.value is None or gate.low is None or gate.value <= gate.bound:
        raise ValueError(f"gate {gate.name} cannot be settled by more patients")
    distance = gate.value - gate.bound
    if spread is not None and spread.effective_patients > 0:
        method = "flips" if gate.name.startswith("superior") else "variance"
        return further_patients(method, distance, (spread.error, spread.effective_patients), patients, level)
    needed = patients * ((gate.value - gate.low) / distance) ** 2
    # The bound has to be passed, not met.
    return max(1, math.floor(needed) + 1 - patients)


def _detectable(spreads: Mapping[str, Spread], level: float) -> float | None:
    spread = spreads.get("balanced_accuracy")
    return detectable(spread.error, spread.effective_patients, level) if spread else None


def _missing_patients(metrics: Metrics, rules: GateRules) -> int | None:
    """Estimate how many patients the holdout lacks, by its rarest requirement; None where a class was never seen."""
    positives, negatives = metrics.tp + metrics.fn, metrics.tn + metrics.fp
    if not (metrics.patients and positives and negatives):
        return None
    shares = [rules.min_patients / metrics.patients, *(rules.min_cells_per_class / n for n in (positives, negatives))]
    return max(1, math.ceil(metrics.patients * max(shares)) - metrics.patients)
