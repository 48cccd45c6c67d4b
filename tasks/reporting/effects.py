"""What a verdict means in cells: errors in 1,000, and how many calls are right where few cells are infected. Pure."""

from __future__ import annotations

import math
from typing import NamedTuple

from tasks.reporting.format import NO_CELLS, NOT_DEFINED, count, level, measured, share, signed
from tasks.reporting.inputs import ReportInputs
from tasks.reporting.models import Model
from validation.records import Evaluation, Interval, Metrics, Verdict

# Shares of infected cells that a film may have: a heavy infection, a usual one, a light one, none.
PREVALENCES = (0.05, 0.01, 0.001, 0.0)
SPECIFICITIES = (0.99, 0.999)
CELLS = 10_000
_ERRORS = {"sensitivity": "Infected cells missed", "specificity": "False alarms"}


class Effect(NamedTuple):
    """One line of what changes: the champion's number, the challenger's, the change, and whether it is certain."""

    name: str
    champion: str
    challenger: str
    change: str
    certainty: str = ""


class Effects(NamedTuple):
    """What changes, or would: the heading, the columns of the champion (empty without one) and challenger, the lines.

    ``is_used``: the challenger's column is what is in use from now on.
    """

    heading: str
    champion: str
    challenger: str
    change: str
    is_used: bool
    rows: tuple[Effect, ...]
    note: str


class Calls(NamedTuple):
    """Calls among ``CELLS`` cells of one share of infected ones."""

    blood: str
    infected: int
    called: int
    right: str


def effects(r: ReportInputs, models: list[Model]) -> Effects | None:
    """Return what a promotion changes in cells, as the judging patients show it; None without a look."""
    e = r.evaluation
    if e is None:
        return None
    heading, old, new = {
        Verdict.PROMOTED: ("What changes, per 1,000 cells", "was", "now"),
        Verdict.AWAITING_APPROVAL: ("What would change, per 1,000 cells", "now", "if approved"),
    }.get(r.outcome, ("Nothing changes; per 1,000 cells", "in use", "challenger"))
    if e.champion_metrics is None:
        heading = "What to expect, per 1,000 cells"
    rows = [_errors(e, name) for name in _ERRORS]
    rows += [row for specificity in SPECIFICITIES if (row := _at_specificity(models, specificity)) is not None]
    difference = next(iter(e.differences.values()), None)
    return Effects(
        heading=heading,
        champion=old if e.champion_metrics is not None else "",
        challenger=new,
        change="change" if e.champion_metrics is not None else "95% interval",
        is_used=r.outcome is Verdict.PROMOTED,
        rows=tuple(rows),
        note=_note(e, difference, found=len(rows) > len(_ERRORS)),
    )


def _note(e: Evaluation, difference: Interval | None, *, found: bool) -> str:
    clear = e.challenger_metrics.tn + e.challenger_metrics.fp
    allowed = " or ".join(f"{int(clear * (1 - s) + 1e-9):,} ({100 * s:g}%)" for s in SPECIFICITIES)
    text = "Missed: of 1,000 infected cells; false alarms: of 1,000 uninfected ones."
    if found:
        text += (
            f" Found: the sensitivity at a threshold that allows {allowed} false alarms among these "
            f"{count(clear, 'uninfected cell')}."
        )
    if difference is None:
        return text
    return f"Certain: the whole {level(difference)} interval lies on one side of no change. {text}"


def _errors(e: Evaluation, name: str) -> Effect:
    challenger = measured(e.challenger_metrics, name)
    champion = measured(e.champion_metrics, name) if e.champion_metrics else ""
    difference = e.differences.get(name)
    change, certainty = _change(difference) if difference else (NOT_DEFINED, "")
    if e.champion_metrics is None and isinstance(challenger, Interval):
        change = f"{_per_thousand(challenger.high)} to {_per_thousand(challenger.low)}"
    return Effect(_ERRORS[name], _missed(champion), _missed(challenger), change, certainty)


def _missed(measure: Interval | str) -> str:
    if isinstance(measure, str):
        return "no cells" if measure == NO_CELLS else measure
    return str(_per_thousand(measure.value))


def _change(difference: Interval) -> tuple[str, str]:
    """Return how many errors more or fewer in 1,000 cells, and whether that is certain."""
    if not (math.isfinite(difference.low) and math.isfinite(difference.high)) or difference.low <= -1:
        return "not known", ""
    least, most = round(-1000 * difference.high), round(-1000 * difference.low)
    certainty = "certain" if difference.low > 0 or difference.high < 0 else "uncertain"
    if least == most == 0:
        return "no change", certainty
    if most <= 0:
        return f"{-most} to {-least} fewer", certainty
    if least >= 0:
        return f"{least} to {most} more", certainty
    return f"{-least} fewer to {most} more", certainty


def _at_specificity(models: list[Model], specificity: float) -> Effect | None:
    """Return the sensitivity where a threshold chosen on these very cells allows so few false alarms."""
    found = {model.role: model.sensitivity_at(specificity) for model in models}
    new, old = found.get("challenger"), found.get("champion")
    if new is None:
        return None
    change = f"{signed(100 * (new - old))} points" if old is not None else ""
    name = f"Found at {100 * specificity:g}% specificity"
    return Effect(name, share(old) if old is not None else "", share(new), change)


def _per_thousand(rate_right: float) -> int:
    return round(1000 * (1 - rate_right))


def model_in_use(r: ReportInputs, models: list[Model]) -> tuple[Model, str] | None:
    """Return the judged model that is in use after tonight, and its name; the challenger's where there is none yet."""
    by_role = {model.role: model for model in models}
    champion, verdict = by_role.get("champion"), r.outcome
    if champion is not None and verdict not in (Verdict.PROMOTED, Verdict.AWAITING_APPROVAL):
        return champion, f"version {r.night.champion_before}, the model in use"
    name = {
        Verdict.PROMOTED: f"version {r.night.champion_after}, the model in use from now on"
        if r.answer is None
        else "the challenger, which was approved",
        Verdict.AWAITING_APPROVAL: "the challenger, if it is approved",
    }.get(verdict, "the challenger, which is not used")
    return (by_role["challenger"], name) if "challenger" in by_role else None


def calls_by_prevalence(metrics: Metrics) -> list[Calls]:
    """Return a model's calls among ``CELLS`` cells, by the share of them that is infected; empty where not known."""
    sensitivity, specificity = measured(metrics, "sensitivity"), measured(metrics, "specificity")
    if isinstance(sensitivity, str) or isinstance(specificity, str):
        return []
    judged = (metrics.tp + metrics.fn) / metrics.cells
    names = [f"these judged cells, {share(judged, 0)}", *(share(p, 1).replace(".0%", "%") for p in PREVALENCES[:-1])]
    rows = []
    for name, infected in zip([*names, "healthy blood"], (judged, *PREVALENCES), strict=True):
        right = CELLS * infected * sensitivity.value
        called = right + CELLS * (1 - infected) * (1 - specificity.value)
        rows.append(Calls(name, round(CELLS * infected), round(called), _portion(right, called)))
    return rows


def _portion(part: float, whole: float) -> str:
    if not part or not whole:
        return "none" if whole else "–"
    return share(part / whole, 0) if part / whole >= 0.005 else "under 1%"


def limits(metrics: Metrics | None) -> str:
    """Return from which share of infected cells on most calls are right; nothing where that is not known."""
    sensitivity = measured(metrics, "sensitivity") if metrics else ""
    specificity = measured(metrics, "specificity") if metrics else ""
    if isinstance(sensitivity, str) or isinstance(specificity, str):
        return ""
    alarms = 1 - specificity.value
    even = alarms / (alarms + sensitivity.value) if alarms + sensitivity.value else 0.0
    if not even:
        return ""
    return f"Where fewer than {share(even)} of the cells are infected, most “infected” calls are false alarms."
