"""The gates of a promotion: each with its value, its interval, its bound and its verdict.

All comparisons are paired, by patient and one-sided. Their level is a look's equal share of one error budget
(Bonferroni over the looks of a year). Only numbers are here; tasks/reporting/words turns them into sentences.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from validation.records import NEGATIVE, POSITIVE, Gate, Interval, Metrics, Spread, Verdict
from validation.rules import GateRules
from validation.statistics.metrics import Scored
from validation.statistics.paired_tests import (
    MOST,
    Question,
    best_effective,
    detectable,
    error_within,
    further_patients,
    least_effective,
    least_patients,
    of_shares,
)

SUPERIOR = "superior balanced accuracy"
NOT_WORSE = {"sensitivity": "sensitivity not worse", "specificity": "specificity not worse"}
OF_REFERENCE = " than the reference"


@dataclass(frozen=True)
class GateResult:
    """The verdict of all gates. ``decisive`` is the failed gate that settled it, if a single one did.

    ``further_patients`` estimates how many more would pass the whole gate at tonight's differences.
    ``detectable_difference`` is the smallest true gain, of sensitivity and of specificity alike, that tonight's
    patients let through the whole gate with a chance of 80%.
    """

    verdict: Verdict
    gates: tuple[Gate, ...] = ()
    decisive: Gate | None = None
    further_patients: int | None = None
    detectable_difference: float | None = None


def level_of_look(rules: GateRules) -> float:
    """Return the one-sided level of one look's tests: an equal share of the year's budget."""
    return rules.error_budget / rules.looks


def beats_on_tuning(challenger: Metrics, champion: Metrics) -> bool:
    """Whether a challenger is worth a look: better balanced accuracy on the tuning patients."""
    new, old = challenger.balanced_accuracy, champion.balanced_accuracy
    return new is not None and (old is None or new.value > old.value)


def could_pass(challenger: Scored, champion: Scored, rules: GateRules, reference: Scored | None = None) -> GateResult:
    """Judge whether any labels of the cells on which two models disagree could pass the comparisons.

    All are the scores of the same cells. No label of a cell is used on which the two differ: the challenger is taken to
    be right there, and both are equally right wherever they agree. promoted: a look could pass. undecided: no look can,
    and the failed gates say what is missing: cells of a class or patients at all, patients with a disagreement, or
    effective patients (of equal size, with as much information) for sensitivity or specificity.
    """
    level = level_of_look(rules)
    differ = _calls(challenger) != _calls(champion)
    cells = (int((differ | challenger.labels).sum()), int((differ | ~challenger.labels).sum()))
    gates = [
        *_enough(challenger.count, cells, rules),
        _minimum("patients with a disagreement", _patients(challenger, differ), least_patients(level)),
        *_effective(challenger, champion, rules, level, ""),
        *(_effective(challenger, reference, rules, level, OF_REFERENCE) if reference else ()),
    ]
    missing = [gate for gate in gates if not gate.passed]
    if not missing:
        return GateResult(Verdict.PROMOTED, tuple(gates))
    return GateResult(Verdict.UNDECIDED, tuple(gates), missing[0], _missing(challenger.count, missing))


def judge_first(challenger: Metrics, rules: GateRules) -> GateResult:
    """Judge a model that has no champion to beat: only the amount of data and the floors apply."""
    return _judge(challenger, (), rules, None)


def judge(
    challenger: Metrics,
    differences: Mapping[str, Interval],
    rules: GateRules,
    spreads: Mapping[str, Spread] | None = None,
    reference: Mapping[str, Interval] | None = None,
) -> GateResult:
    """Judge a challenger against the champion, and against a fixed reference champion where there is one.

    ``differences`` are challenger minus champion on the same cells, ``reference`` challenger minus reference; each
    interval's lower bound is the one-sided bound at one look's level (statistics.metrics.compare). ``spreads``
    (statistics.metrics.spreads of challenger and champion) give the number of further patients and the detectable
    difference; without them the first is estimated from the bounds, and there is no second.

    promoted: every gate passes. undecided: no gate speaks against the challenger but the evidence is too thin.
    kept: the challenger is not better, or a gate speaks against it.
    """
    level, spreads = level_of_look(rules), spreads or {}
    margins = {"sensitivity": rules.sensitivity_margin, "specificity": rules.specificity_margin}
    compared = [_Compared.of(SUPERIOR, "balanced_accuracy", differences, 0.0, level, spreads)]
    compared += [_Compared.of(NOT_WORSE[m], m, differences, -margins[m], level, spreads) for m in NOT_WORSE]
    smallest = _detectable(compared, level)
    if reference:
        further = [
            _Compared.of(NOT_WORSE[m] + OF_REFERENCE, m, reference, -margins[m], level, spreads, inverted=True)
            for m in NOT_WORSE
        ]
        smallest = _detectable([*compared, *further], level, differences, reference)
        compared += further
    return _judge(challenger, compared, rules, smallest)


@dataclass(frozen=True)
class _Compared:
    """A comparison's gate, and the question behind it as far as its precision is known."""

    metric: str
    gate: Gate
    question: Question | None

    @classmethod
    def of(
        cls,
        name: str,
        metric: str,
        differences: Mapping[str, Interval],
        bound: float,
        level: float,
        spreads: Mapping[str, Spread],
        *,
        inverted: bool = False,
    ) -> _Compared:
        """Compare by the lower bound; an undefined difference fails.

        ``inverted``: of the spread only the effective patients apply (the same cells, another model), and the error is
        that behind the bound.
        """
        difference, spread = differences.get(metric), spreads.get(metric)
        value, low, high = (difference.value, difference.low, difference.high) if difference else (None, None, None)
        gate = Gate(
            name=name, value=value, low=low, high=high, bound=bound, level=level,
            passed=low is not None and low > bound, sentence="",
        )  # fmt: skip
        if difference is None or spread is None or spread.effective_patients <= 0:
            return cls(metric, gate, None)
        error, effective = spread.error, spread.effective_patients
        if inverted:
            error = error_within(difference.value - difference.low, effective, level)
        method = "flips" if name == SUPERIOR else "variance"
        return cls(metric, gate, Question(method, difference.value - bound, error, effective))

    @property
    def speaks_against(self) -> bool:
        return self.gate.value is None or self.gate.value <= self.gate.bound

    def further(self, patients: int) -> int:
        """Estimate how many more patients would pass the gate; without a spread the distance falls with their root."""
        gate = self.gate
        if gate.value is None or gate.low is None or gate.level is None or self.speaks_against:
            raise ValueError(f"no number of patients would let the gate {gate.name} pass")
        if self.question is not None:
            return further_patients(self.question, patients, gate.level)
        return _by_root(gate, patients)


def _judge(challenger: Metrics, compared: Iterable[_Compared], rules: GateRules, smallest: float | None) -> GateResult:
    compared = tuple(compared)
    enough = _enough(challenger.patients, (challenger.tp + challenger.fn, challenger.tn + challenger.fp), rules)
    floors = (
        _floor("AUC floor", challenger.auc, rules.min_auc),
        _floor("sensitivity floor", challenger.sensitivity, rules.min_sensitivity),
        _floor("specificity floor", challenger.specificity, rules.min_specificity),
    )
    gates = (*enough, *(one.gate for one in compared), *floors)

    def result(verdict: Verdict, decisive: Gate | None = None, further: int | None = None) -> GateResult:
        return GateResult(verdict, gates, decisive, further, smallest)

    if all(gate.passed for gate in gates):
        return result(Verdict.PROMOTED)
    against = [one.gate for one in compared if one.speaks_against]
    against += [gate for gate in floors if gate.value is None or gate.value < gate.bound]
    open_ = [] if against else [one.further(challenger.patients) for one in compared if not one.gate.passed]
    open_ += [] if against else [_by_root(gate, challenger.patients) for gate in floors if not gate.passed]
    if lacking := [gate for gate in enough if not gate.passed]:
        missing = _missing(challenger.patients, lacking)
        return result(Verdict.UNDECIDED, lacking[0], None if missing is None else max(missing, *open_, 0))
    if against:
        return result(Verdict.KEPT, against[0])
    return result(Verdict.UNDECIDED, further=max(open_))


def _detectable(
    compared: Iterable[_Compared],
    level: float,
    differences: Mapping[str, Interval] | None = None,
    reference: Mapping[str, Interval] | None = None,
) -> float | None:
    """Return the smallest true difference from the champion that passes all comparisons; None where one is unknown.

    What the champion has over the reference is taken to be what it has tonight.
    """
    questions = []
    for one in compared:
        if one.question is None or one.gate.value is None:
            return None
        ahead = -one.gate.bound
        if differences and reference and one.gate.name.endswith(OF_REFERENCE):
            ahead += reference[one.metric].value - differences[one.metric].value
        questions.append(Question(one.question.method, ahead, one.question.error, one.question.effective))
    return detectable(questions, level)


def _effective(challenger: Scored, other: Scored, rules: GateRules, level: float, than: str) -> tuple[Gate, ...]:
    """Return the gates of non-inferiority in the best case: effective patients, more than the test needs.

    A disagreement may be a gain of the class that the challenger calls, or a loss of the other. The best case is mostly
    all gains; but a loss in a patient who outweighs all others can take away more variance than difference.
    """
    new, old = _calls(challenger), _calls(other)
    labels = np.where(new == old, challenger.labels, new)
    gates = []
    for metric, of_class, call, margin in (
        ("sensitivity", labels, new, rules.sensitivity_margin),
        ("specificity", ~labels, ~new, rules.specificity_margin),
    ):
        cells, gained, lost = (
            np.bincount(challenger.patients, weights=w, minlength=challenger.count).astype(np.float64)
            for w in (of_class, (new != old) & call, (new != old) & ~call)
        )
        least, most = of_shares(-lost, cells), of_shares(gained, cells)
        value = best_effective(least, most, margin) if least and most else 0.0
        name, bound = f"effective patients, {NOT_WORSE[metric]}{than}", least_effective(level)
        gates.append(_gate(name, value, bound, passed=value > bound))
    return tuple(gates)


def _calls(scored: Scored) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    return scored.probabilities >= scored.threshold


def _patients(scored: Scored, cells: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> int:
    return len(np.unique(scored.patients[cells]))


def _enough(patients: int, cells: tuple[int, int], rules: GateRules) -> tuple[Gate, ...]:
    return (
        _minimum("judging patients", patients, rules.min_patients),
        _minimum(f"judging {POSITIVE} cells", cells[0], rules.min_cells_per_class),
        _minimum(f"judging {NEGATIVE} cells", cells[1], rules.min_cells_per_class),
    )


def _minimum(name: str, value: float, bound: float) -> Gate:
    """Return the gate that a count passes by reaching ``bound``."""
    return _gate(name, value, bound, passed=value >= bound)


def _floor(name: str, measured: Interval | None, bound: float) -> Gate:
    """Return the gate that a metric passes when its lower bound reaches ``bound``; an undefined metric fails."""
    if measured is None:
        return _gate(name, None, bound, passed=False)
    gate = _gate(name, measured.value, bound, passed=measured.low >= bound)
    return gate.model_copy(update={"low": measured.low, "high": measured.high})


def _gate(name: str, value: float | None, bound: float, *, passed: bool) -> Gate:
    return Gate(name=name, value=value, low=None, high=None, bound=bound, level=None, passed=passed, sentence="")


def _by_root(gate: Gate, patients: int) -> int:
    """Estimate how many more patients lift a lower bound above the bound: its distance falls with their root.

    A value on its bound needs more than any number: the largest that ``further_patients`` knows.
    """
    if gate.value is None or gate.low is None:
        raise ValueError(f"the gate {gate.name} has no interval")
    if gate.value <= gate.bound:
        return MOST
    needed = patients * ((gate.value - gate.low) / (gate.value - gate.bound)) ** 2
    # The bound has to be passed, not met.
    return min(MOST, max(1, math.floor(needed) + 1 - patients))


def _missing(patients: int, gates: Iterable[Gate]) -> int | None:
    """Estimate how many patients are missing by the rarest requirement; None where something was never seen."""
    shares = [gate.bound / gate.value if gate.value else math.inf for gate in gates]
    if not patients or math.isinf(max(shares)):
        return None
    return max(1, math.ceil(patients * max(shares) - 1e-9) - patients)
