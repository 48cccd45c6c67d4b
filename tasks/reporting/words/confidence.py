"""How far a verdict can be relied on, from the records alone."""

from __future__ import annotations

from tasks.reporting.format import level, share, signed
from tasks.reporting.inputs import ReportInputs
from validation.records import Metrics, Verdict

_FACTS = {
    Verdict.INVALID_DATA: "These checks count and measure. Nothing was estimated, so chance has no part in it.",
    Verdict.NOTHING_NEW: "Nothing was measured tonight: the earlier decision is in force.",
    Verdict.CHAMPION_UNUSABLE: "That the champion cannot be used is a fact, not an estimate.",
}


def confidence(r: ReportInputs) -> str:
    """Return how far the verdict can be relied on."""
    if r.evaluation is None:
        nothing = "Nothing was measured tonight."
        chosen = (
            "The figures are from tuning patients, on whom epoch and threshold were chosen: they flatter, and prove "
            "nothing about other patients. They only show whether a look is worth its price."
        )
        return _FACTS.get(r.decision.verdict, chosen if r.challenger else nothing)
    if not r.has_champion:
        return f"{_alone(r.evaluation.challenger_metrics)} {_optimism(r)}"
    if any(not gate.passed for gate in r.decision.gates if gate.name.startswith("judging ")):
        return "On so few patients or cells no interval can be trusted, whatever it says: nothing is decided."
    return " ".join(filter(None, [_difference(r), _risk(r, r.evaluation.look.spent), _power(r), _optimism(r)]))


def _alone(metrics: Metrics) -> str:
    sides = {name: m for name in ("sensitivity", "specificity") if (m := getattr(metrics, name)) is not None}
    ranges = " and ".join(f"{name} between {share(m.low)} and {share(m.high)}" for name, m in sides.items())
    confident = next(map(level, sides.values()), "95%")
    figures = f"On patients like these {metrics.patients:,}, with {confident} confidence: {ranges}. " if sides else ""
    return f"{figures}Whether that is good enough is for a person to judge."


def _difference(r: ReportInputs) -> str:
    """Return what the patients can show, and the interval behind it."""
    gate = next((g for g in r.decision.gates if g.name == "superior balanced accuracy"), None)
    if gate is None or gate.low is None or gate.high is None:
        return ""
    reading = "These patients cannot show whether the challenger makes fewer mistakes or more"
    if gate.low > 0:
        reading = "The challenger makes fewer mistakes, and chance alone does not explain it; how many is less certain"
    elif gate.high < 0:
        reading = "The challenger makes more mistakes, and chance alone does not explain it"
    ends = f"between {signed(100 * gate.low)} and {signed(100 * gate.high)} points"
    return f"{reading}: balanced accuracy changes by {ends}{_of_level(gate.level)}."


def _of_level(alpha: float | None) -> str:
    return f" ({100 * (1 - 2 * alpha):.4g}% interval)" if alpha is not None else ""


def _risk(r: ReportInputs, spent: float) -> str:
    """Return how often a model that is no better would be promoted."""
    if spent <= 0:
        return ""
    text = f"A challenger that is no better would be promoted in 1 of {round(1 / spent):,} looks"
    if r.exhibits is None:
        return f"{text}."
    number = sum(look.spent > 0 for look in r.exhibits.ledger)
    risk = f"{100 * r.exhibits.error_budget:.2g}%"
    return f"{text}; this is look {number} of the {r.exhibits.looks} that share a risk of {risk} in any 365 days."


def _power(r: ReportInputs) -> str:
    smallest = r.decision.detectable_difference
    if smallest is None or r.decision.verdict in (Verdict.PROMOTED, Verdict.AWAITING_APPROVAL):
        return ""
    return (
        f"A challenger truly better by {100 * smallest:.1f} points, in sensitivity and specificity alike, would "
        "probably have passed all conditions on these patients; a smaller gain may go unseen."
    )


def _optimism(r: ReportInputs) -> str:
    """Return which way the figures err: for what was chosen by them, and for members in place of the whole file."""
    modest = "each patient was judged by a member, which has seen fewer patients than the file that is deployed"
    if r.has_champion and r.decision.verdict in (Verdict.PROMOTED, Verdict.AWAITING_APPROVAL):
        chosen = "The challenger was chosen by these figures, which flatters them a little"
        return f"{chosen}; but {modest}, so they are, if anything, too modest."
    return f"The figures are, if anything, too modest: {modest}."
