"""One condition in words, from its numbers: a gate of a promotion, or a check of the data."""

from __future__ import annotations

from collections.abc import Iterable

from tasks.reporting.format import NOT_DEFINED, capital, count, points
from validation.records import Check, Gate

EFFECTIVE = "effective patients, "


def condition(gate: Gate) -> str:
    """Return how a gate came out, without capital and full stop; of an unknown gate, the words it was stored with."""
    if gate.name.startswith(("judging ", "patients ", EFFECTIVE)):
        return _amount(gate)
    if gate.name.endswith(" floor"):
        metric, measured = gate.name.removesuffix(" floor"), NOT_DEFINED if gate.value is None else f"{gate.value:.4f}"
        if gate.low is None:
            return f"{metric} is {measured}; at least {gate.bound:.4f} needed"
        return f"{metric} is {measured}; its lower bound {gate.low:.4f} must be at least {gate.bound:.4f}"
    metric = compared(gate.name)
    if metric == gate.name:
        return gate.sentence.strip() or f"condition: {gate.name}"
    if gate.value is None or gate.low is None:
        return f"{metric} cannot be compared: there are no cells of a class"
    worst = f"at worst {points(gate.low)}" if gate.low > -1 else "on too few patients for a lower bound"
    need = "it must be higher even at worst"
    if gate.bound < 0:
        need = f"up to {-100 * gate.bound:.2f} points lower is tolerated"
    return f"{metric} is {points(gate.value)}, {worst}; {need}"


def _amount(gate: Gate) -> str:
    """Return how a gate on the amount of data came out."""
    value, needed = gate.value or 0, f"at least {gate.bound:,.0f} needed"
    if gate.name.startswith(EFFECTIVE):
        metric = compared(gate.name.removeprefix(EFFECTIVE))
        return f"for {metric}, the patients are worth {value:.1f} of equal size, more than {gate.bound:.1f} needed"
    if gate.name == "patients with a disagreement":
        return f"the models differ on cells of {count(round(value), 'patient')}, {needed}"
    return f"{value:,.0f} {gate.name.removeprefix('judging ')} to judge by, {needed}"


def compared(name: str) -> str:
    """Return what a gate compares, as sentences name it; of an unknown gate, its name."""
    metric = name.removeprefix("superior ")
    for ending, against in ((" not worse than the reference", " against the reference"), (" not worse", "")):
        if metric.endswith(ending):
            return metric.removesuffix(ending) + against
    return metric


def tolerated(gates: Iterable[Gate]) -> str:
    """Return what a challenger that passed was shown to lose at most; nothing where no such gate was tested."""
    by_margin: dict[str, list[str]] = {}
    for gate in gates:
        if gate.name.endswith(" not worse"):
            by_margin.setdefault(f"{abs(100 * gate.bound):g}", []).append(compared(gate.name))
    parts = [
        f"{' and '.join(metrics)} {'is' if len(metrics) == 1 else 'are'} not worse"
        + (f" by more than {margin} {'point' if margin == '1' else 'points'}" if margin != "0" else "")
        for margin, metrics in by_margin.items()
    ]
    return ", ".join(parts)


def recorded_condition(gate: Gate) -> str:
    """Return how a gate came out with the level of its test, as it is stored with a decision."""
    return condition(gate) + (f" (one-sided level {gate.level:.4f})" if gate.level is not None else "")


def condition_sentence(gate: Gate) -> str:
    """Return how a gate came out as one sentence among others."""
    text = capital(condition(gate))
    return text if text.endswith((".", "!", "?")) else f"{text}."


def check_outcome(check: Check) -> str:
    """Return what a check of the data expected and observed."""
    return f"{check.name}: {check.observed}, expected {check.expected}"
