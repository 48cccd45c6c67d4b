"""Why a night ended as it did, what that means for patients, and what changes; from the records alone."""

from __future__ import annotations

import math
from typing import NamedTuple

from markupsafe import Markup

from tasks.reporting.format import NOT_DEFINED, capital, count, level, measured, share
from tasks.reporting.inputs import ReportInputs
from tasks.reporting.words.conditions import check_outcome, condition_sentence
from tasks.reporting.words.recorded import NOTHING_NEW
from validation.records import Evaluation, Gate, Interval, Verdict


def why(r: ReportInputs) -> str:
    """Return why the night ended as it did."""
    match r.decision.verdict:
        case Verdict.INVALID_DATA:
            return _invalid_data(r)
        case Verdict.NOTHING_NEW:
            return _nothing_new(r)
        case Verdict.CHAMPION_UNUSABLE:
            problem = r.decision.champion_problem or "no reason was recorded"
            return (
                f"{capital(r.champion_name)} could not be loaded or scored: {problem}. A champion that cannot be "
                "scored does not count as beaten: nothing was compared, and nothing was promoted. Repair it, or roll "
                "back to a version that works."
            )
    contest = _on_validation(r) if r.evaluation is None else _on_holdout(r, r.evaluation)
    return " ".join([contest, *_conditions(r.decision.gates), _outcome(r)])


def _invalid_data(r: ReportInputs) -> str:
    decisive = [check for check in r.validation.checks if check.severity == "invalid"]
    failed = [f"{capital(check_outcome(check))}." for check in decisive if not check.passed]
    untouched = f"{r.champion_name} is untouched" if r.has_champion else "there is still no champion"
    return (
        f"Tonight's data failed {len(failed)} of {count(len(decisive), 'check')} that must pass before a training. "
        f"{' '.join(failed)} Nothing was trained, the holdout was not looked at, and {untouched}."
    )


def _nothing_new(r: ReportInputs) -> str:
    changes = ", the same as at the last snapshot"
    if r.snapshot.new or r.snapshot.gone:
        changes = f"; {r.snapshot.new:,} are new and {r.snapshot.gone:,} are gone since the last snapshot"
    champion = f"{r.champion_name} stays" if r.has_champion else "there is still no champion"
    before = f" {r.decision.sentence}." if r.decision.sentence.startswith(NOTHING_NEW) else ""
    return (
        f"The store holds {count(r.snapshot.objects, 'labelled image')}{changes}. Nothing was trained and the holdout "
        f"was not looked at; {champion}.{before}"
    )


def _on_validation(r: ReportInputs) -> str:
    if not r.candidates:
        return "No training ended with a model, so there was no challenger, and the holdout was not looked at."
    champion = r.decision.champion_on_validation
    new = measured(r.challenger.validation, "balanced_accuracy") if r.challenger else NOT_DEFINED
    old = measured(champion, "balanced_accuracy") if champion else NOT_DEFINED
    contest = f"The challenger was tonight's {r.night.challenger_model} model."
    if isinstance(new, Interval) and isinstance(old, Interval):
        lost = ": it did not beat the champion there" if new.value <= old.value else ""
        figures = f"a balanced accuracy of {share(new.value, 2)} against the champion's {share(old.value, 2)}"
        contest = f"On the validation patients the challenger ({r.night.challenger_model}) reached {figures}{lost}."
    return f"{contest} The holdout was not looked at, and none of its error budget was spent."


def _on_holdout(r: ReportInputs, e: Evaluation) -> str:
    challenger = f"The challenger ({r.night.challenger_model})"
    where = f"{count(e.challenger_metrics.cells, 'cell')} of {count(e.challenger_metrics.patients, 'holdout patient')}"
    if r.has_champion:
        return f"{challenger} and {r.champion_name} scored the same {where}."
    return f"{challenger} scored {where}. There was no champion to compare it with, so only the floors applied."


def _conditions(gates: tuple[Gate, ...]) -> list[str]:
    """Return the conditions that failed; where none did, those that compared something: the rest are in the table."""
    if not gates:
        return []
    failed = [condition_sentence(gate) for gate in gates if not gate.passed]
    if not failed:
        compared = [gate for gate in gates if gate.level is not None] or gates
        return [f"All {len(gates)} conditions passed.", *map(condition_sentence, compared)]
    rest = len(gates) - len(failed)
    tail = [f"The other {count(rest, 'condition')} passed."] if rest else []
    return [f"{len(failed)} of {count(len(gates), 'condition')} failed.", *failed, *tail]


def _outcome(r: ReportInputs) -> str:
    stays = "the champion stays" if r.has_champion else "there is still no champion"
    match r.decision.verdict:
        case Verdict.PROMOTED:
            return "So it replaced the champion." if r.has_champion else "So it is the first champion."
        case Verdict.UNDECIDED if r.evaluation is None:
            return f"Without a look at the holdout nothing can be decided: {stays} for now."
        case Verdict.UNDECIDED:
            further = "How many further holdout patients would decide it cannot be estimated from tonight's figures."
            if r.decision.further_patients is not None:
                further = f"About {count(r.decision.further_patients, 'further holdout patient')} would decide it."
            return f"That does not decide it either way, so {stays} for now. {further}"
        case Verdict.AWAITING_APPROVAL:
            return f"A person must now approve or reject it; until then {stays}."
        case _:
            return f"So {stays}."


def outlook(r: ReportInputs) -> str:
    """Return what the verdict means for patients, before any number."""
    today = f"{r.champion_name} continues as before" if r.has_champion else "there is no champion to use"
    match r.decision.verdict:
        case Verdict.PROMOTED:
            return "From now on, judging by the holdout patients:"
        case Verdict.CHAMPION_UNUSABLE:
            return "Until a person acts, predictions by the champion cannot be relied on."
        case _ if r.evaluation is None:
            return f"Nothing changes: {today}."
        case Verdict.AWAITING_APPROVAL:
            return f"Nothing changes until a person approves: {today}. If approved, judging by the holdout patients:"
        case _:
            return f"Nothing changes: {today}. The challenger, judging by the holdout patients:"


class ErrorRateChange(NamedTuple):
    """What a verdict means for cells of one class: errors in 1,000 cells, with their intervals."""

    sentence: Markup
    details: tuple[str, ...]


def changes(r: ReportInputs) -> list[ErrorRateChange]:
    """Return the errors in 1,000 cells of each class on the holdout, challenger and champion."""
    if r.evaluation is None:
        return []
    now = r.decision.verdict is Verdict.PROMOTED
    misses, alarms = ("misses", "raises a false alarm on") if now else ("would miss", "would raise a false alarm on")
    return [
        _change(r.evaluation, "sensitivity", f"Of 1,000 infected cells it {misses}"),
        _change(r.evaluation, "specificity", f"Of 1,000 uninfected cells it {alarms}"),
    ]


def _change(e: Evaluation, name: str, start: str) -> ErrorRateChange:
    challenger = measured(e.challenger_metrics, name)
    champion = measured(e.champion_metrics, name) if e.champion_metrics else None
    if isinstance(challenger, str):
        return ErrorRateChange(Markup(f"{start} a number that is not known"), (f"{name}: {challenger}",))  # noqa: S704
    new = _per_thousand(challenger.value)
    sentence = f"{start} <strong>{new}</strong>"
    details = [f"{level(challenger)} interval: {_errors(challenger)}"]
    if isinstance(champion, Interval):
        old = _per_thousand(champion.value)
        sentence += ", as many as the champion" if new == old else f" instead of <strong>{old}</strong>"
        details.append(f"the champion's: {_errors(champion)}")
    difference = e.differences.get(name)
    if difference is not None and math.isfinite(difference.low) and math.isfinite(difference.high):
        fewest, most = _more(-difference.high), _more(-difference.low)
        details.append(f"the difference, paired by patient ({level(difference)}): {fewest} to {most}")
    return ErrorRateChange(Markup(sentence), tuple(details))  # noqa: S704 - our own words and whole numbers


def _per_thousand(rate_right: float) -> int:
    return round(1000 * (1 - rate_right))


def _errors(interval: Interval) -> str:
    return f"{_per_thousand(interval.high)} to {_per_thousand(interval.low)}"


def _more(errors: float) -> str:
    amount = round(1000 * errors)
    return "no change" if amount == 0 else f"{abs(amount)} {'more' if amount > 0 else 'fewer'}"
