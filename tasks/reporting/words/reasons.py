"""The words that carry a report's verdict: why, what it means for patients, what changes. From nothing but the records.

They are made here, from the gates and the counts, and not in the template, so that each can be tested.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.reporting.format import NOT_DEFINED, count, level, measured, share
from validation.records import Evaluation, Gate, Interval, Verdict

if TYPE_CHECKING:
    from tasks.reporting.inputs import ReportInputs


@dataclass(frozen=True)
class ErrorRateChange:
    """What a verdict means for cells of one class: of 1,000 ``cells`` the model ``verb`` ``ours`` (not ``theirs``)."""

    cells: str
    verb: str
    ours: int | None
    theirs: int | None
    details: tuple[str, ...]


def why(r: ReportInputs) -> list[str]:
    """Why the night ended as it did, sentence by sentence, from nothing but the records."""
    if r.decision.verdict is Verdict.INVALID_DATA:
        return _why_invalid(r)
    if r.decision.verdict is Verdict.NOTHING_NEW:
        return _why_nothing_new(r)
    if r.decision.verdict is Verdict.CHAMPION_UNUSABLE:
        return _why_unusable(r)
    return [*_contest(r), *_conditions(r.decision.gates), *_outcome(r)]


def _why_invalid(r: ReportInputs) -> list[str]:
    decisive = [c for c in r.validation.checks if c.severity == "invalid"]
    failed = [c for c in decisive if not c.passed]
    told = [f"{c.name[:1].upper()}{c.name[1:]}: expected {c.expected}, observed {c.observed}." for c in failed]
    lead = f"Tonight's data failed {len(failed)} of {count(len(decisive), 'check')} that must hold before a training."
    ending = f"Nothing was trained, the holdout was not looked at, and {_untouched(r)}."
    return [*([lead, *told] if failed else ["Tonight's data was refused before any training."]), ending]


def _why_unusable(r: ReportInputs) -> list[str]:
    problem = r.decision.champion_problem or "no reason was recorded"
    return [
        f"{r.champion_name[:1].upper()}{r.champion_name[1:]} could not be loaded or scored: {problem}.",
        "A champion that cannot be scored counts as beaten by nobody: "
        "nothing was promoted, and the holdout was not looked at.",
        "Repair it, or roll back to a version that works.",
    ]


def _untouched(r: ReportInputs) -> str:
    return f"{r.champion_name} is untouched" if r.has_champion else "there is still no champion"


def _why_nothing_new(r: ReportInputs) -> list[str]:
    objects = f"The store holds {count(r.snapshot.objects, 'labelled image')}"
    if r.snapshot.new == 0 and r.snapshot.gone == 0:
        lead = f"{objects}, the same as at the last snapshot."
    else:
        lead = f"{objects}; {r.snapshot.new:,} are new and {r.snapshot.gone:,} are gone since the last snapshot."
    undone = "Nothing was trained" if not r.candidates else "Nothing new was trained"
    looked = "" if r.evaluation else " and the holdout was not looked at"
    champion = f"{r.champion_name} stays" if r.has_champion else "there is still no champion"
    before = [f"{r.decision.sentence}."] if r.decision.sentence.startswith("Nothing new since") else []
    return [lead, f"{undone}{looked}; {champion}.", *before]


def _contest(r: ReportInputs) -> list[str]:
    """Who met whom, and on which cells."""
    if r.evaluation is not None:
        return _holdout_contest(r, r.evaluation)
    if not r.candidates:
        return ["No training ended with a model, so there was no challenger, and the holdout was not looked at."]
    unseen = "The holdout was not looked at, and none of its error budget was spent."
    if r.challenger is None:
        return [f"None of tonight's models became the challenger. {unseen}"]
    theirs = r.decision.champion_on_validation
    ours = measured(r.challenger.validation, "balanced_accuracy")
    against = measured(theirs, "balanced_accuracy") if theirs else NOT_DEFINED
    if isinstance(ours, str) or isinstance(against, str):
        return [f"The challenger was tonight's {r.challenger.spec.model} model. {unseen}"]
    lost = ": it did not beat the champion there" if ours.value <= against.value else ""
    figures = f"a balanced accuracy of {share(ours.value, 2)} against the champion's {share(against.value, 2)}"
    return [f"On the validation patients the challenger ({r.challenger.spec.model}) reached {figures}{lost}.", unseen]


def _holdout_contest(r: ReportInputs, e: Evaluation) -> list[str]:
    model = r.night.challenger_model or (r.challenger.spec.model if r.challenger else None)
    challenger = f"the challenger ({model})" if model else "the challenger"
    where = f"{count(e.challenger_metrics.cells, 'cell')} of {count(e.challenger_metrics.patients, 'holdout patient')}"
    if not r.has_champion:
        alone = "There was no champion to compare it with, so only the floors applied."
        return [f"{challenger.capitalize()} scored {where}.", alone]
    if e.champion_metrics is None:
        return [f"{challenger.capitalize()} scored {where}; for {r.champion_name} there are no figures on them."]
    return [f"{challenger.capitalize()} and {r.champion_name} scored the same {where}."]


def _conditions(gates: tuple[Gate, ...]) -> list[str]:
    if not gates:
        return []
    failed = [g for g in gates if not g.passed]
    if not failed:
        # What was tested, where anything was: the rest are minima that a reader finds in the table.
        told = [g for g in gates if g.level is not None] or gates
        return [
            f"All {len(gates)} conditions held." if len(gates) > 1 else "The one condition held.",
            *map(_said, told),
        ]
    rest = len(gates) - len(failed)
    tail = [f"The other {count(rest, 'condition')} held."] if rest else []
    return [f"{len(failed)} of {count(len(gates), 'condition')} did not hold.", *map(_said, failed), *tail]


def _said(gate: Gate) -> str:
    """A condition as one sentence among others: a comparison in plain words, any other as the gate put it."""
    metric = next((m for m in ("balanced accuracy", "sensitivity", "specificity") if m in gate.name), None)
    if metric is None or gate.level is None or gate.value is None or gate.low is None:
        text = gate.sentence.strip() or f"condition: {gate.name}"
        return text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")
    name = metric.capitalize()
    if gate.bound < 0:
        worst = f"may be up to {_points(gate.low)}" if gate.low < 0 else f"surely at least {_points(gate.low)}"
        return f"{name} is {_points(gate.value)} and {worst}, where up to {-100 * gate.bound:.2f} lower is tolerated."
    if gate.low > 0:
        return f"{name} is {_points(gate.value)}, and surely at least {_points(gate.low)}."
    return f"{name} is {_points(gate.value)}, but may be up to {_points(gate.low)}: it must surely be higher."


def _points(difference: float) -> str:
    if round(100 * difference, 2) == 0:
        return "unchanged"
    return f"{100 * abs(difference):.2f} points {'higher' if difference > 0 else 'lower'}"


def _outcome(r: ReportInputs) -> list[str]:
    stays = "the champion stays" if r.has_champion else "there is still no champion"
    match r.decision.verdict:
        case Verdict.PROMOTED:
            return ["So it replaced the champion."] if r.has_champion else ["So it is the first champion."]
        case Verdict.UNDECIDED if r.evaluation is None:
            return [f"Without a look at the holdout nothing can be decided: {stays} for now."]
        case Verdict.UNDECIDED:
            more = r.decision.further_patients
            unknown = "How many further holdout patients would settle it cannot be said from tonight's figures."
            settle = f"About {count(more, 'further holdout patient')} would settle it." if more is not None else unknown
            return [f"That does not decide it either way, so {stays} for now.", settle]
        case Verdict.AWAITING_APPROVAL:
            return [f"A person must now approve or reject it; until then {stays}."]
        case _:
            return [f"So {stays}."]


def outlook(r: ReportInputs) -> str:
    """What the verdict means for patients, before any number."""
    verdict = r.decision.verdict
    today = f"{r.champion_name} goes on as before" if r.has_champion else "there is no champion to use"
    if verdict is Verdict.PROMOTED:
        return "From now on, judging by the holdout patients:"
    if verdict is Verdict.CHAMPION_UNUSABLE:
        return "Until a person acts, predictions by the champion cannot be relied on."
    if r.evaluation is None:
        return f"Nothing changes: {today}."
    if verdict is Verdict.AWAITING_APPROVAL:
        return f"Nothing changes until a person approves: {today}. If approved, judging by the holdout patients:"
    return f"Nothing changes: {today}. The challenger, judging by the holdout patients:"


def changes(r: ReportInputs) -> list[ErrorRateChange]:
    """Errors in 1,000 cells of each class on the holdout, challenger and champion, with their intervals."""
    if r.evaluation is None:
        return []
    now = r.decision.verdict is Verdict.PROMOTED
    misses, alarms = ("misses", "raises a false alarm on") if now else ("would miss", "would raise a false alarm on")
    return [
        _change(r.evaluation, "sensitivity", "infected cells", misses),
        _change(r.evaluation, "specificity", "uninfected cells", alarms),
    ]


def _change(e: Evaluation, name: str, cells: str, verb: str) -> ErrorRateChange:
    ours = measured(e.challenger_metrics, name)
    theirs = measured(e.champion_metrics, name) if e.champion_metrics else None
    if isinstance(ours, str):
        return ErrorRateChange(cells, verb, None, None, (f"{name}: {ours}",))
    details = [f"{level(ours)} interval: {_errors(ours)}"]
    if isinstance(theirs, Interval):
        details.append(f"the champion's: {_errors(theirs)}")
    difference = e.differences.get(name)
    if difference is not None and math.isfinite(difference.low) and math.isfinite(difference.high):
        ends = f"{_more(-difference.high)} to {_more(-difference.low)}"
        details.append(f"the difference, paired by patient ({level(difference)}): {ends}")
    before = _per_thousand(theirs.value) if isinstance(theirs, Interval) else None
    return ErrorRateChange(cells, verb, _per_thousand(ours.value), before, tuple(details))


def _per_thousand(rate_right: float) -> int:
    return round(1000 * (1 - rate_right))


def _errors(interval: Interval) -> str:
    return f"{_per_thousand(interval.high)} to {_per_thousand(interval.low)}"


def _more(errors: float) -> str:
    amount = round(1000 * errors)
    return "no change" if amount == 0 else f"{abs(amount)} {'more' if amount > 0 else 'fewer'}"
