"""One condition in words, from its numbers: a gate of a promotion, or a check of the data."""

from __future__ import annotations

from tasks.reporting.format import NOT_DEFINED, capital, points
from validation.records import Check, Gate


def condition(gate: Gate) -> str:
    """Return how a gate came out, without capital and full stop; of an unknown gate, the words it was stored with."""
    name, value, bound = gate.name, gate.value, gate.bound
    if name.startswith("holdout "):
        return f"{value or 0:,.0f} {name.removeprefix('holdout ')} in the holdout, at least {bound:,.0f} needed"
    if name.endswith(" floor"):
        measured = NOT_DEFINED if value is None else f"{value:.4f}"
        return f"{name.removesuffix(' floor')} is {measured}, at least {bound:.4f} needed"
    metric = name.removeprefix("superior ").removesuffix(" not worse")
    if metric == name:
        return gate.sentence.strip() or f"condition: {name}"
    if value is None or gate.low is None:
        return f"{metric} cannot be compared: the holdout has no cells of a class"
    worst = f"at worst {points(gate.low)}" if gate.low > -1 else "on too few patients for a lower bound"
    need = "it must be higher even at worst"
    if bound < 0:
        need = f"up to {-100 * bound:.2f} points lower is tolerated"
    return f"{metric} is {points(value)}, {worst}; {need}"


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
