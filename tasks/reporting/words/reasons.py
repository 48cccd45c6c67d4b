"""Why a night ended as it did, from the records alone."""

from __future__ import annotations

from tasks.reporting.format import NOT_DEFINED, capital, count, measured, share
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
                "scored does not count as beaten, so nothing was compared. Repair it, or roll back to a version that "
                "works."
            )
    if r.evaluation is None:
        return " ".join([_on_tuning(r), *_not_looked(r), _outcome(r)])
    return " ".join(filter(None, [*_on_judging(r, r.evaluation), *_conditions(r.decision.gates), _outcome(r)]))


def _invalid_data(r: ReportInputs) -> str:
    decisive = [check for check in r.validation.checks if check.severity == "invalid"]
    failed = [f"{capital(check_outcome(check))}." for check in decisive if not check.passed]
    untouched = f"{r.champion_name} is untouched" if r.has_champion else "there is still no champion"
    return (
        f"Tonight's data failed {len(failed)} of {count(len(decisive), 'check')} that must pass before a training. "
        f"{' '.join(failed)} Nothing was trained, and {untouched}."
    )


def _nothing_new(r: ReportInputs) -> str:
    changes = ", the same as at the last snapshot"
    if r.snapshot.new or r.snapshot.gone:
        changes = f"; {r.snapshot.new:,} are new and {r.snapshot.gone:,} are gone since the last snapshot"
    champion = f"{r.champion_name} stays" if r.has_champion else "there is still no champion"
    before = f" {r.decision.sentence}." if r.decision.sentence.startswith(NOTHING_NEW) else ""
    return (
        f"The store holds {count(r.snapshot.objects, 'labelled image')}{changes}. Nothing was trained; {champion}."
        f"{before}"
    )


def _on_tuning(r: ReportInputs) -> str:
    if not r.candidates:
        return "No training ended with a model, so there was no challenger."
    champion = r.decision.tuning.get("champion")
    new = measured(r.challenger_on_tuning, "balanced_accuracy") if r.challenger_on_tuning else NOT_DEFINED
    old = measured(champion, "balanced_accuracy") if champion else NOT_DEFINED
    if isinstance(new, Interval) and isinstance(old, Interval):
        lost = ": it did not beat the champion there" if new.value <= old.value else ""
        figures = f"a balanced accuracy of {share(new.value, 2)} against the champion's {share(old.value, 2)}"
        return f"On the tuning patients the challenger ({r.night.challenger_model}) reached {figures}{lost}."
    return f"The challenger was tonight's {r.night.challenger_model} model."


def _not_looked(r: ReportInputs) -> list[str]:
    """Return that no look was taken, why a challenger that earned one got none, and what is missing."""
    why = f": {r.decision.not_looked.strip().removesuffix('.')}" if r.decision.not_looked else ""
    missing = [condition_sentence(gate) for gate in r.decision.gates if not gate.passed]
    return [f"No look was taken, and nothing of the error budget was spent{why}.", *missing]


def _on_judging(r: ReportInputs, e: Evaluation) -> list[str]:
    challenger = f"The challenger ({r.night.challenger_model})"
    where = f"{count(e.challenger_metrics.cells, 'cell')} of {count(e.challenger_metrics.patients, 'judging patient')}"
    contest = (
        f"{challenger} scored {where}. There was no champion to compare it with: only the amount of data and "
        "the floors counted."
    )
    if r.has_champion:
        contest = f"{challenger} and {r.champion_name} scored the same {where}."
    return [contest, *([f"{capital(e.unjudged).removesuffix('.')}."] if e.unjudged else [])]


def _conditions(gates: tuple[Gate, ...]) -> list[str]:
    """Return the conditions that failed; where none did, those that compared something: the table has the rest."""
    if not gates:
        return []
    failed = [condition_sentence(gate) for gate in gates if not gate.passed]
    if not failed:
        compared = [gate for gate in gates if gate.level is not None]
        return [f"All {len(gates)} conditions passed.", *map(condition_sentence, compared)]
    rest = len(gates) - len(failed)
    tail = [f"The other {count(rest, 'condition')} passed."] if rest else []
    return [f"{len(failed)} of {count(len(gates), 'condition')} failed.", *failed, *tail]


def _outcome(r: ReportInputs) -> str:
    stays = "the champion stays" if r.has_champion else "there is still no champion"
    match r.decision.verdict:
        case Verdict.PROMOTED:
            return "So it replaced the champion." if r.has_champion else ""
        case Verdict.UNDECIDED if r.evaluation is None:
            needed = r.decision.further_patients
            more = f" About {count(needed, 'further patient')} would make one worth taking." if needed else ""
            return f"Without a look nothing can be decided: {stays} for now.{more}"
        case Verdict.UNDECIDED:
            further = "How many further patients would decide it cannot be estimated from tonight's figures."
            if r.decision.further_patients is not None:
                further = f"About {count(r.decision.further_patients, 'further patient')} would decide it."
            return f"That does not decide it either way, so {stays} for now. {further}"
        case Verdict.AWAITING_APPROVAL if r.answer is not None:
            return "So it was left to a person."
        case Verdict.AWAITING_APPROVAL:
            return f"A person must now approve or reject it; until then {stays}."
        case _:
            return f"So {stays}."
