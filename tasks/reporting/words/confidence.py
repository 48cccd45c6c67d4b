"""How sure a verdict is, in words, from nothing but the records."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.reporting.format import count, level, share
from validation.records import Evaluation, Gate, Verdict

if TYPE_CHECKING:
    from tasks.reporting.inputs import ReportInputs


def confidence(r: ReportInputs) -> list[str]:
    """How far the verdict can be relied on, sentence by sentence."""
    if r.evaluation is None:
        return [_without_a_look(r)]
    if not r.has_champion:
        return _alone(r.evaluation)
    if any(not gate.passed for gate in r.decision.gates if gate.name.startswith("holdout ")):
        return ["On so few patients or cells no interval can be trusted, whatever it says: nothing is decided."]
    return [*_risk(r, r.evaluation), *_difference(r), *_power(r)]


def _without_a_look(r: ReportInputs) -> str:
    match r.decision.verdict:
        case Verdict.INVALID_DATA:
            return "These checks count and measure what is there. Nothing was estimated, so chance has no part in it."
        case Verdict.NOTHING_NEW:
            return "Nothing was measured tonight: what was decided before stands as it was."
        case Verdict.CHAMPION_UNUSABLE:
            return "Quite sure: that the champion cannot be used is a fact, not an estimate. Nothing was compared."
    if r.challenger is None:
        return "Nothing was measured tonight, so there is nothing to be sure of."
    return (
        "The figures are from validation patients, on whom epoch and threshold were chosen: they flatter, and prove "
        "nothing about other patients. They only tell whether a look at the holdout is worth its price."
    )


def _alone(e: Evaluation) -> list[str]:
    metrics = e.challenger_metrics
    sides = [(name, getattr(metrics, name)) for name in ("sensitivity", "specificity")]
    told = [f"{name} between {share(m.low)} and {share(m.high)}" for name, m in sides if m is not None]
    confident = next((level(m) for _, m in sides if m is not None), "95%")
    figures = f"On patients like these {count(metrics.patients, 'holdout patient')}, with {confident} confidence: "
    return [
        *([figures + " and ".join(told) + "."] if told else []),
        "Nothing was compared. Whether the floors are high enough for your patients is for a person to judge.",
    ]


def _risk(r: ReportInputs, e: Evaluation) -> list[str]:
    """What a false promotion would have cost in chance."""
    if e.look.spent <= 0:
        return []
    night = (
        f"If the challenger were truly no better, the chance of promoting it tonight would be {_percent(e.look.spent)}"
    )
    if r.exhibits is None:
        return [f"{night}, by the design of the tests."]
    number = sum(look.spent > 0 for look in r.exhibits.ledger)
    share_of = (
        f"this is look {number} of the {r.exhibits.looks} that share a risk of {_percent(r.exhibits.error_budget)}"
    )
    return [f"{night}, by the design of the tests: {share_of}."]


def _difference(r: ReportInputs) -> list[str]:
    gate = next((g for g in r.decision.gates if g.name == "superior balanced accuracy"), None)
    if gate is None or gate.low is None or gate.high is None or gate.level is None:
        return []
    return [f"At that level the change in balanced accuracy is {_points(gate)}: {_reading(gate)}."]


def _points(gate: Gate) -> str:
    low, high = (f"{100 * (end or 0.0):+.1f}".replace("-", "−") for end in (gate.low, gate.high))
    return f"between {low} and {high} points"


def _reading(gate: Gate) -> str:
    if gate.low is not None and gate.low > 0:
        return "surely better, though how much is open within these bounds"
    if gate.high is not None and gate.high < 0:
        return "surely worse"
    return "it may be better or worse"


def _power(r: ReportInputs) -> list[str]:
    smallest = r.decision.detectable_difference
    if smallest is None or r.decision.verdict in (Verdict.PROMOTED, Verdict.AWAITING_APPROVAL):
        return []
    return [
        f"A true difference of {100 * smallest:.1f} points or more would probably have shown on these patients; "
        "a smaller one may go unseen."
    ]


def _percent(value: float) -> str:
    return f"{100 * value:.2g}%"
