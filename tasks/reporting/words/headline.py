"""The verdict in one plain sentence, for a reader who reads nothing else; and the sentences of the index."""

from __future__ import annotations

from tasks.reporting.format import capital, count, shorten, when
from tasks.reporting.inputs import ReportInputs
from tasks.reporting.words.conditions import compared, tolerated
from validation.records import ApprovalAnswer, FieldReport, Night, Promotion, Verdict

# A name and the account that answered: both ends of a longer one are shown.
LONGEST_WHO = 160
SYNTHETIC = "No figure here says anything about real blood films."
_ANSWERS = {"approve": "Approved", "reject": "Rejected"}
_CHANGES = {"approved": "Approved", "override": "Promoted by hand", "rollback": "Rolled back"}
_DONE = _ANSWERS | _CHANGES | {"rebuilt": "Registry rebuilt"}


def verdict_name(verdict: Verdict, answer: ApprovalAnswer | None = None, *, has_champion: bool) -> str:
    """Return a verdict as pages show it: a first champion was not tested, and a person may have answered."""
    if answer is not None:
        return _ANSWERS[answer.answer].lower()
    return "first champion" if verdict is Verdict.PROMOTED and not has_champion else verdict.value


def night_name(night: Night) -> str:
    """Return a night's verdict as pages show it."""
    return verdict_name(night.verdict, has_champion=night.champion_before is not None)


def headline(r: ReportInputs) -> str:
    """Return what was decided."""
    model, version = r.night.challenger_model, r.night.champion_after
    challenger = f"the {model} challenger"
    before = f"version {r.night.champion_before}" if r.night.champion_before else "the champion"
    stays = f"{capital(before)} stays champion" if r.has_champion else "There is still no champion"
    margins = tolerated(r.decision.gates)
    promoted = f"Version {version} ({model}) replaces {before}. It makes fewer mistakes{'; ' * bool(margins)}{margins}."
    awaiting = f"{capital(challenger)} passed every test. It becomes champion once approved."
    if not r.has_champion:
        floors = "its lower bounds reach the floors. It was compared with no other model."
        promoted = f"Version {version} ({model}) is the first champion: {floors}"
        awaiting = f"{capital(challenger)} becomes the first champion once approved: {floors}"
    undecided = f"{challenger} could not be put to the test"
    if r.evaluation is not None:
        undecided = f"nothing speaks against {challenger}, but the evidence is too thin"
    failure = f"{challenger} {_failure(r)}" if r.challenger else "tonight brought no challenger"
    if r.answer is not None:
        awaiting = f"{capital(challenger)} passed every test and was approved: it became champion."
        if r.answer.answer == "reject":
            awaiting = f"{stays}: {challenger} passed every test, and a person rejected it."
    return {
        Verdict.PROMOTED: promoted,
        Verdict.KEPT: f"{stays}: {failure}.",
        Verdict.UNDECIDED: f"{stays} for now: {undecided}.",
        Verdict.AWAITING_APPROVAL: awaiting,
        Verdict.CHAMPION_UNUSABLE: f"{capital(before)} cannot be used. Nothing was promoted; a person must act.",
        Verdict.NOTHING_NEW: f"The same data and settings have been judged already. {stays}.",
        Verdict.INVALID_DATA: f"Tonight's data must not be trained on. {stays}.",
    }[r.decision.verdict]


def approval_state(r: ReportInputs) -> str:
    """Return until when a decision waits for a person, and as of when that is so; or the answer."""
    if r.answer is not None:
        return f"As of {when(r.answer.at)}, by {shorten(r.answer.who, LONGEST_WHO)}: {shorten(r.answer.why, 160)}."
    if r.request is None:
        return ""
    return f"As of {when(r.night.finished_at)} it waits for a person, until {when(r.request.expires_at)}."


def _failure(r: ReportInputs) -> str:
    if r.evaluation is None:
        return "does not beat it on the tuning patients"
    failed = [gate.name for gate in r.decision.gates if not gate.passed]
    floors = " and ".join(name.removesuffix(" floor") for name in failed if name.endswith(" floor"))
    worse = " and ".join(compared(name) for name in failed if " not worse" in name)
    failures = ["is not shown to be better"] if any(name.startswith("superior") for name in failed) else []
    failures += [f"may lose too much {worse}"] if worse else []
    failures += [f"may be below the floor for {floors}"] if floors else []
    return ", and ".join(failures) or "did not pass every test"


def field_sentence(field: FieldReport) -> str:
    """Return whether a champion keeps on new patients what was promised."""
    patients = f"{count(field.patients, 'patient')} who came after its training"
    if not field.worse:
        return f"Nothing on {patients} contradicts what was promised of version {field.version}."
    worse = " and ".join(name.replace("_", " ") for name in field.worse)
    return f"On {patients}, the {worse} of version {field.version} cannot be what was promised."


def index_headline(decisions: int, champion: str | None) -> str:
    """Return who is champion, for the page that lists all decisions."""
    if not decisions:
        return "No night has come to a decision yet."
    if champion is None:
        return "There is no champion yet."
    return f"Champion after the newest decision that names one: version {champion}."


def answered(change: Promotion | ApprovalAnswer) -> str:
    """Return what a person did about a decision afterwards, and why."""
    action = change.answer if isinstance(change, ApprovalAnswer) else change.action
    return f"{_DONE[action]} by {shorten(change.who, LONGEST_WHO)}, {when(change.at)}: {shorten(change.why, 160)}"
