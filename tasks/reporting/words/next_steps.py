"""What a reader can do about a verdict: the exact command, for every way a night can end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from validation.records import Verdict

if TYPE_CHECKING:
    from tasks.reporting.inputs import ReportInputs


@dataclass(frozen=True)
class Command:
    """One line to type, and what it does."""

    does: str
    text: str


@dataclass(frozen=True)
class NextSteps:
    """What to do about a verdict: a heading, a sentence, commands."""

    heading: str
    sentence: str
    commands: tuple[Command, ...]


_WHY = '--why "REASON"'
_RUN = Command("Run a night", "retrain run")


def next_steps(r: ReportInputs) -> NextSteps:
    """Return what a reader who disagrees, or must act, can do now."""
    decision = r.decision.id
    match r.decision.verdict:
        case Verdict.PROMOTED:
            return _promoted(r)
        case Verdict.AWAITING_APPROVAL:
            commands = (
                Command("Make the challenger champion", f"retrain approve {decision} {_WHY}"),
                Command("Keep what is there", f"retrain reject {decision} {_WHY}"),
            )
            return NextSteps(
                "What is asked of you", "Approve or reject; your name and reason are kept for good.", commands
            )
        case Verdict.CHAMPION_UNUSABLE:
            return _unusable(r)
        case Verdict.INVALID_DATA:
            sentence = (
                "Mend the data in the bucket, or change the setting that stands behind a check (retrain settings lists "
                "them all); then run the night again. The champion goes on meanwhile."
            )
            return NextSteps("What to do", sentence, (_RUN,))
        case Verdict.NOTHING_NEW:
            commands = (Command("Bring cells", "retrain import FOLDER"), _RUN)
            return NextSteps("What to do", "Nothing. To have another verdict, bring labelled cells.", commands)
        case _:
            return _stayed(r)


def _promoted(r: ReportInputs) -> NextSteps:
    heading = "If you disagree"
    if not r.has_champion:
        sentence = (
            "There is no earlier version to go back to. Raise a floor (settings gate.min_auc, gate.min_sensitivity, "
            "gate.min_specificity) for the nights to come, and use no champion until one meets it."
        )
        return NextSteps(heading, sentence, (Command("See what is champion, and why", "retrain champion"), _RUN))
    before = r.night.champion_before or "the one before"
    commands = (
        Command(f"Put version {before} back", f"retrain rollback {_WHY}"),
        Command("See every change of the champion", "retrain history"),
    )
    return NextSteps(heading, "One command puts the champion before this one back, and keeps your reason.", commands)


def _unusable(r: ReportInputs) -> NextSteps:
    commands = (
        Command("Go back to the version before", f"retrain rollback {_WHY}"),
        Command("See every change of the champion", "retrain history"),
        Command("Then run the night again", "retrain run"),
    )
    return NextSteps("What to do now", f"Until somebody acts, {r.champion_name} cannot be relied on.", commands)


def _stayed(r: ReportInputs) -> NextSteps:
    """Kept or undecided: the challenger can be promoted by hand where there is one."""
    if r.challenger is None:
        return NextSteps("What to do", "Mend what ended the trainings, and run the night again.", (_RUN,))
    commands = [Command("Promote the challenger by hand", f"retrain promote {r.decision.id} {_WHY}")]
    if r.decision.verdict is Verdict.UNDECIDED:
        commands.append(Command("Or bring more patients", "retrain import FOLDER"))
    return NextSteps(
        "If you disagree", "A person may overrule the gate. The history then says who did, and why.", tuple(commands)
    )
