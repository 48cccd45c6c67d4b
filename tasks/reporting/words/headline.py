"""The verdict in one plain sentence, under the headline; what was recorded word for word stands in the record."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from validation.records import Verdict

if TYPE_CHECKING:
    from tasks.reporting.inputs import ReportInputs


def summary_sentence(r: ReportInputs) -> str:
    """Return what was decided, for a reader who reads nothing else."""
    challenger = f"the {r.night.challenger_model} challenger" if r.night.challenger_model else "the challenger"
    sentences: dict[Verdict, Callable[[ReportInputs], str]] = {
        Verdict.PROMOTED: _promoted,
        Verdict.AWAITING_APPROVAL: lambda r: (
            f"{_capital(challenger)} passed every test. It becomes champion when a person approves."
        ),
        Verdict.UNDECIDED: lambda r: f"{_stays(r)} for now: {_undecided(r, challenger)}.",
        Verdict.CHAMPION_UNUSABLE: lambda r: (
            f"{_capital(_before(r))} cannot be used. Nothing was promoted; a person must act."
        ),
        Verdict.NOTHING_NEW: lambda r: f"The same data and settings have been judged already. {_stays(r)}.",
        Verdict.INVALID_DATA: lambda r: f"Tonight's data must not be trained on. {_stays(r)}.",
        Verdict.KEPT: lambda r: f"{_stays(r)}: {_kept(r, challenger)}.",
    }
    return sentences[r.decision.verdict](r)


def _promoted(r: ReportInputs) -> str:
    model = r.night.challenger_model
    if not r.has_champion:
        what = f"a {model} model" if model else "a model"
        return f"The first champion: {what} that meets every floor. There was none to compare it with."
    after = f"Version {r.night.champion_after}" if r.night.champion_after else "The challenger"
    return (
        f"{after}{f' ({model})' if model else ''} is champion now: better than {_before(r)}, "
        "and worse in nothing that matters."
    )


def _undecided(r: ReportInputs, challenger: str) -> str:
    if r.evaluation is None:
        return f"{challenger} could not be put to the test"
    return f"nothing speaks against {challenger}, but the evidence is too thin"


def _kept(r: ReportInputs, challenger: str) -> str:
    if r.challenger is None:
        return "tonight brought no challenger"
    if r.evaluation is None:
        return f"{challenger} does not beat it on the validation patients"
    failed = [gate.name for gate in r.decision.gates if not gate.passed]
    floors = [name.removesuffix(" floor") for name in failed if name.endswith(" floor")]
    worse = [name.removesuffix(" not worse") for name in failed if name.endswith(" not worse")]
    told = ["is not shown to be better"] if any(name.startswith("superior") for name in failed) else []
    told += [f"may lose too much {' and '.join(worse)}"] if worse else []
    told += [f"is below the floor for {' and '.join(floors)}"] if floors else []
    return f"{challenger} {', and '.join(told) or 'did not pass every test'}"


def _stays(r: ReportInputs) -> str:
    if not r.has_champion:
        return "There is still no champion"
    return f"Version {r.night.champion_before} stays champion" if r.night.champion_before else "The champion stays"


def _before(r: ReportInputs) -> str:
    return f"version {r.night.champion_before}" if r.night.champion_before else "the champion"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
