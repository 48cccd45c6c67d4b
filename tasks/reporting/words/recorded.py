"""The sentence that a decision is stored with: what logs, Prefect, MLflow and the index of reports quote."""

from __future__ import annotations

from tasks.reporting.format import count
from tasks.reporting.words.conditions import check_outcome, recorded_condition, tolerated
from validation.gate import GateResult
from validation.records import ChampionRef, Decision, Metrics, Night, ValidationResult, Verdict

# A report recognises the sentence of a night that found nothing new by its beginning.
NOTHING_NEW = "Nothing new since"


def invalid_data(validation: ValidationResult) -> str:
    """Return every decisive check that failed."""
    failed = (check for check in validation.checks if check.severity == "invalid" and not check.passed)
    return f"Tonight's data must not be trained on: {'; '.join(map(check_outcome, failed))}"


def champion_unusable(
    champion: ChampionRef | None, problem: str, last_good: Decision | None, *, was_judged: bool
) -> str:
    """Return why the champion cannot be used, what that means, and the last decision that rests on a usable one."""
    last = ""
    if last_good is not None:
        last = f"; the last decision with a usable champion is {last_good.id} ({last_good.decided_at:%Y-%m-%d})"
    look = "it failed on the judging patients, so nothing was compared" if was_judged else "no look was taken"
    return (
        f"The champion, version {champion.version if champion else 'unknown'}, cannot be used: {problem}. It does not "
        f"count as beaten: {look}, and nothing is promoted{last}. Repair it or roll back, and run again"
    )


def not_looked(why: str, result: GateResult) -> str:
    """Return why a challenger that earned a look did not get one, and what is missing, as far as that is known."""
    missing = f"; {recorded_condition(result.decisive)}" if result.decisive else ""
    return f"No look was taken: {why}{missing}{_further(result, 'make one worth taking')}"


def lost_on_tuning(challenger: Metrics, champion: Metrics | None) -> str:
    """Return the figures with which a challenger did not earn a look."""
    new, old = challenger.balanced_accuracy, champion.balanced_accuracy if champion else None
    values = f" ({new.value:.4f} against {old.value:.4f} balanced accuracy)" if new and old else ""
    return f"The champion stays: the challenger does not beat it on the tuning patients{values}, so no look was taken"


def judged(result: GateResult, *, has_champion: bool, approval_hours: float) -> str:
    """Return what the gates came to, with the gate that was decisive."""
    decisive = recorded_condition(result.decisive) if result.decisive else ""
    if result.verdict is Verdict.UNDECIDED:
        thin = "Nothing speaks against the challenger, but the evidence is too thin"
        thin = f"Too little to judge by: {decisive}" if decisive else thin
        return f"{thin}{_further(result, 'decide it')}"
    if result.verdict is Verdict.KEPT:
        kept = "The champion stays" if has_champion else "No champion yet, and the challenger fails a floor"
        return f"{kept}: {decisive}"
    passed = "First champion, compared with none: each lower bound reaches its floor"
    if has_champion:
        passed = f"The challenger is better than the champion: it makes fewer mistakes; {tolerated(result.gates)}"
    if result.verdict is Verdict.AWAITING_APPROVAL:
        return f"{passed}; a person has to approve it within {approval_hours:g} hours (`retrain approve`)"
    return passed


def _further(result: GateResult, end: str) -> str:
    needed = result.further_patients
    return f"; about {count(needed, 'further patient')} would {end}" if needed else ""


def nothing_new(before: Night) -> str:
    """Return which earlier night came to the verdict on the same data and settings."""
    return f"{NOTHING_NEW} {before.finished_at:%Y-%m-%d %H:%M} UTC (then: {before.verdict.value})"
