"""What a reader can do about a verdict: the exact command, for every way a night can end."""

from __future__ import annotations

from typing import NamedTuple

from tasks.reporting.inputs import ReportInputs
from validation.records import ApprovalRequest, Verdict


class NextSteps(NamedTuple):
    """A heading, a sentence, commands (what each does, and the line to type); another decision to read, and a form."""

    heading: str
    sentence: str
    commands: tuple[tuple[str, str], ...]
    link_text: str = ""
    link: str | None = None
    form: str | None = None


_NAME, _WHY = '--name "YOUR NAME"', '--why "REASON"'
_RUN = ("Run a night", "retrain run")
_RUN_AGAIN = ("Then run the night again", "retrain run")
_HISTORY = ("See every change of the champion", "retrain history")


def form_of(request: ApprovalRequest | None) -> str | None:
    """Return the address of a request's form on Prefect's page, if it is one of a web page: it comes from the store."""
    form = (request.form_url if request is not None else None) or ""
    return form if form.startswith(("http://", "https://")) else None


def next_steps(r: ReportInputs) -> NextSteps:
    """Return what a reader who disagrees, or must act, can do now."""
    decision, good = r.decision.id, r.exhibits.last_good if r.exhibits else None
    promoted = NextSteps(
        "What to do",
        "Nothing. To undo it, put the champion before this one back; your reason is kept.",
        ((f"Put version {r.night.champion_before or 'the one before'} back", f"retrain rollback {_WHY}"), _HISTORY),
    )
    if not r.has_champion:
        sentence = (
            "Decide whether it is good enough for your patients. There is no earlier version to go back to; to refuse "
            "it, raise a floor (settings gate.min_auc, gate.min_sensitivity, gate.min_specificity)."
        )
        promoted = promoted._replace(
            sentence=sentence, commands=(("See what is champion, and why", "retrain champion"), _RUN)
        )
    kept = NextSteps(
        "What to do",
        "Nothing. A person may overrule the gate; the history then says who did, and why.",
        (("Promote the challenger by hand", f"retrain promote {decision} {_WHY}"),),
    )
    if r.answer is not None:
        kept = kept._replace(
            sentence="Nothing. The rejection can be overruled; the history then says by whom, and why."
        )
    if r.challenger is None:
        kept = NextSteps("What to do", "Correct what ended the trainings, and run the night again.", (_RUN,))
    more = ("Or bring more patients", "retrain import FOLDER")
    if r.decision.not_looked and not r.decision.gates:
        more = ("See the looks of this year", "retrain looks")
    undecided = kept._replace(commands=(*kept.commands, more))
    return {
        Verdict.PROMOTED: promoted,
        Verdict.KEPT: kept,
        Verdict.UNDECIDED: undecided if r.challenger else kept,
        Verdict.AWAITING_APPROVAL: NextSteps(
            "What is asked of you",
            "Approve or reject, here or in the form approve/approval on Prefect's page; your name and reason are kept.",
            (
                ("Make the challenger champion", f"retrain approve {decision} {_NAME} {_WHY}"),
                (
                    "Keep the champion as it is" if r.has_champion else "Go on without a champion",
                    f"retrain reject {decision} {_NAME} {_WHY}",
                ),
            ),
            form=form_of(r.request),
        ),
        Verdict.CHAMPION_UNUSABLE: NextSteps(
            "What to do now",
            f"Until a person acts, {r.champion_name} cannot be relied on.",
            (("Go back to the version before", f"retrain rollback {_WHY}"), _HISTORY, _RUN_AGAIN),
            "The last report on a champion that worked",
            good,
        ),
        Verdict.INVALID_DATA: NextSteps(
            "What to do",
            "Correct the data in the bucket, or change the setting behind a check (retrain settings lists them all); "
            "then run the night again. The champion remains in use meanwhile.",
            (_RUN,),
        ),
        Verdict.NOTHING_NEW: NextSteps(
            "What to do",
            "Nothing. To have another verdict, bring labelled cells.",
            (("Bring cells", "retrain import FOLDER"), _RUN),
            "What was decided on this data",
            r.night.decision or decision,
        ),
    }[r.outcome]
