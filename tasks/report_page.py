"""The promotion report: from a night's records to one self-contained HTML page. Pure: no file is read but the template.

The words that carry the verdict are made here, from the gates and the counts, so that each can be tested; the layout is
``report.html.j2``, the drawings are ``report_plots``. Keys, patient ids and messages come from outside: everything
printed passes ``visible``, which shows what would otherwise act on the reader (control and direction marks).
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tasks import report_plots as plots
from validation.records import (
    Candidate,
    Decision,
    Evaluation,
    Gate,
    Interval,
    Metrics,
    Night,
    Snapshot,
    Split,
    ValidationResult,
    Verdict,
)

__all__ = ["ReportInputs", "render_report"]

KEY_LENGTH = 80  # characters of a key that are shown: the middle goes, the ends tell keys apart
TEXT_LENGTH = 2_000  # of anything else: no message from outside can make the page megabytes long
WORST_PATIENTS = 15
NOT_DEFINED = "not defined"
NO_CELLS = "not defined (no cells of the class)"


@dataclass(frozen=True)
class ReportInputs:
    """All that a report is made from.

    ``split`` is None when the data was invalid, ``evaluation`` and ``predictions`` when the holdout was not looked at.
    ``predictions`` has the columns key, sha256, patient, label (1 = Parasitized), challenger and champion
    (probabilities; NaN where there is no champion). ``commands`` and ``settings`` are printed as given: label -> text.
    """

    night: Night
    decision: Decision
    snapshot: Snapshot
    validation: ValidationResult
    split: Split | None
    candidates: tuple[Candidate, ...]
    evaluation: Evaluation | None
    predictions: pd.DataFrame | None
    champion_candidate: Candidate | None
    commands: dict[str, str]
    settings: dict[str, str]

    @property
    def challenger(self) -> Candidate | None:
        """Tonight's challenger, if a training brought one."""
        return next((c for c in self.candidates if c.id == self.decision.challenger), None)

    @property
    def has_champion(self) -> bool:
        """Whether there was a champion before tonight; a decision without a contest leaves it to the night to say."""
        return self.decision.champion_before is not None or self.night.champion_before is not None

    @property
    def champion_name(self) -> str:
        """The champion before tonight, as a sentence names it."""
        champion = self.decision.champion_before
        if champion is not None:
            return f"the champion (version {champion.version}, {champion.model})"
        return f"the champion (version {self.night.champion_before})" if self.has_champion else "no champion"


@dataclass(frozen=True)
class Change:
    """What a verdict means for cells of one class: of 1,000 ``cells`` the model ``verb`` ``ours`` (not ``theirs``)."""

    cells: str
    verb: str
    ours: int | None
    theirs: int | None
    details: tuple[str, ...]


def render_report(inputs: ReportInputs) -> str:
    """One self-contained HTML page; the same inputs give the same bytes."""
    page = _environment().get_template("report.html.j2")
    return page.render(
        r=inputs,
        d=inputs.decision,
        e=inputs.evaluation,
        difference_level=_difference_level(inputs.evaluation),
        why=" ".join(why(inputs)),
        outlook=outlook(inputs),
        changes=changes(inputs),
        headline=_headline(inputs),
        figures=_figures(inputs),
        patients=worst_patients(inputs),
        shown_patients=WORST_PATIENTS,
        gate_strips=[Markup(plots.interval_strip(g.value, g.low, g.high, g.bound)) for g in inputs.decision.gates],  # noqa: S704
        NO_CELLS=NO_CELLS,
    ) + "\n"  # fmt: skip


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: shorten(value, TEXT_LENGTH) if type(value) is str else value,
    )
    environment.filters.update(
        short=shorten, share=share, number=number, signed=signed, when=when, measured=measured, bytes=file_size,
        spread=spread, duration=duration,
    )  # fmt: skip
    return environment


# --- text from outside -------------------------------------------------------------------------------------------


def visible(text: str) -> Iterator[str]:
    """The characters of ``text``, those that would act rather than show (and tall piles of accents) spelled out."""
    pile = 0
    for character in text:
        category = unicodedata.category(character)
        pile = pile + 1 if category.startswith("M") else 0
        acts = category[0] == "C" or category in ("Zl", "Zp")
        if (acts and character not in "\n\t") or pile > 3:
            yield f"⟨U+{ord(character):04X}⟩"
        else:
            yield character


def shorten(text: str, length: int = KEY_LENGTH) -> str:
    """At most ``length`` characters: a longer text loses its middle."""
    if len(text) <= length:
        shown = list(visible(text))
        if sum(map(len, shown)) <= length:
            return "".join(shown)
    half = length // 2
    head = _fill(visible(text[:length]), half)
    tail = _fill(reversed(list(visible(text[-length:]))), length - half - 1)
    return "".join(head) + "…" + "".join(reversed(tail))


def _fill(parts: Iterator[str], length: int) -> list[str]:
    kept: list[str] = []
    for part in parts:
        length -= len(part)
        if length < 0:
            break
        kept.append(part)
    return kept


# --- numbers -----------------------------------------------------------------------------------------------------


def share(value: float, digits: int = 1) -> str:
    """0.948 as 94.8%."""
    return f"{100 * value:.{digits}f}%" if math.isfinite(value) else NOT_DEFINED


def number(value: float | None) -> str:
    """A number of unknown kind: counts whole, fractions to 4 digits; a dash for none."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return NOT_DEFINED
    whole = float(value).is_integer() and (abs(value) > 1 or value == 0)
    return (f"{value:,.0f}" if whole else f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}").replace("-", "−")


def signed(value: float, digits: int = 1) -> str:
    """With its sign, a true minus; zero has none."""
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text[1:] if float(f"{value:.{digits}f}") == 0 else text


def spread(interval: Interval, scale: float = 100, digits: int = 1) -> str:
    """The two ends of an interval, 93.1–96.0."""
    return f"{scale * interval.low:.{digits}f}–{scale * interval.high:.{digits}f}"


def measured(metrics: Metrics, name: str) -> Interval | str:
    """One metric of a model, or the words for why it has none."""
    value: Interval | None = getattr(metrics, name)
    if value is not None and all(math.isfinite(v) for v in (value.value, value.low, value.high)):
        return value
    infected, clear = metrics.tp + metrics.fn, metrics.tn + metrics.fp
    needed = {"sensitivity": infected, "specificity": clear, "accuracy": infected + clear}.get(name, infected * clear)
    return NOT_DEFINED if needed else NO_CELLS


def when(moment: datetime) -> str:
    """A time for people, in UTC whatever zone it was recorded in."""
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def duration(seconds: float) -> str:
    """Seconds as a person would say them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def file_size(size: float) -> str:
    """Bytes in the unit that fits."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def level(interval: Interval) -> str:
    """0.95 as 95%, 0.975 as 97.5%."""
    return f"{round(100 * interval.level, 2):g}%"


def count(amount: int, one: str, many: str | None = None) -> str:
    """1 patient, 20 patients, 1,000 cells."""
    return f"{amount:,} {one if amount == 1 else many or one + 's'}"


# --- words -------------------------------------------------------------------------------------------------------


def why(r: ReportInputs) -> list[str]:
    """Why the night ended as it did, sentence by sentence, from nothing but the records."""
    if r.decision.verdict is Verdict.INVALID_DATA:
        return _why_invalid(r)
    if r.decision.verdict is Verdict.NOTHING_NEW:
        return _why_nothing_new(r)
    return [*_contest(r), *_conditions(r.decision.gates), *_outcome(r)]


def _why_invalid(r: ReportInputs) -> list[str]:
    decisive = [c for c in r.validation.checks if c.severity == "invalid"]
    failed = [c for c in decisive if not c.passed]
    told = [f"{c.name[:1].upper()}{c.name[1:]}: expected {c.expected}, observed {c.observed}." for c in failed]
    lead = f"Tonight's data failed {len(failed)} of {count(len(decisive), 'check')} that must hold before a training."
    ending = f"Nothing was trained, the holdout was not looked at, and {_untouched(r)}."
    return [*([lead, *told] if failed else ["Tonight's data was refused before any training."]), ending]


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
    return [lead, f"{undone}{looked}; {champion}."]


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
    sure = f"at least {_points(gate.low)}" if gate.low > 0 else f"no more than {_points(gate.low)}"
    needed = "" if gate.passed else ", where it must be higher"
    if gate.bound < 0:
        needed = f", where up to {-100 * gate.bound:.2f} points lower is tolerated"
    return f"{metric.capitalize()} is {_points(gate.value)}, at tonight's level surely {sure}{needed}."


def _points(difference: float) -> str:
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
    if r.evaluation is None:
        return f"Nothing changes: {today}."
    if verdict is Verdict.AWAITING_APPROVAL:
        return f"Nothing changes until a person approves: {today}. If approved, judging by the holdout patients:"
    return f"Nothing changes: {today}. The challenger, judging by the holdout patients:"


def changes(r: ReportInputs) -> list[Change]:
    """Errors in 1,000 cells of each class on the holdout, challenger and champion, with their intervals."""
    if r.evaluation is None:
        return []
    now = r.decision.verdict is Verdict.PROMOTED
    misses, alarms = ("misses", "raises a false alarm on") if now else ("would miss", "would raise a false alarm on")
    return [
        _change(r.evaluation, "sensitivity", "infected cells", misses),
        _change(r.evaluation, "specificity", "uninfected cells", alarms),
    ]


def _change(e: Evaluation, name: str, cells: str, verb: str) -> Change:
    ours = measured(e.challenger_metrics, name)
    theirs = measured(e.champion_metrics, name) if e.champion_metrics else None
    if isinstance(ours, str):
        return Change(cells, verb, None, None, (f"{name}: {ours}",))
    details = [f"{level(ours)} interval: {_errors(ours)}"]
    if isinstance(theirs, Interval):
        details.append(f"the champion's: {_errors(theirs)}")
    difference = e.differences.get(name)
    if difference is not None and math.isfinite(difference.low) and math.isfinite(difference.high):
        ends = f"{_more(-difference.high)} to {_more(-difference.low)}"
        details.append(f"the difference, paired by patient ({level(difference)}): {ends}")
    before = _per_thousand(theirs.value) if isinstance(theirs, Interval) else None
    return Change(cells, verb, _per_thousand(ours.value), before, tuple(details))


def _per_thousand(rate_right: float) -> int:
    return round(1000 * (1 - rate_right))


def _errors(interval: Interval) -> str:
    return f"{_per_thousand(interval.high)} to {_per_thousand(interval.low)}"


def _more(errors: float) -> str:
    amount = round(1000 * errors)
    return "no change" if amount == 0 else f"{abs(amount)} {'more' if amount > 0 else 'fewer'}"


# --- views -------------------------------------------------------------------------------------------------------


def _headline(r: ReportInputs) -> dict[str, Any]:
    """The best evidence there is for the first screen, and what it was measured on."""
    ours: Metrics | None = None
    theirs: Metrics | None = None
    where = "There are no figures tonight"
    if r.evaluation is not None:
        ours, theirs = r.evaluation.challenger_metrics, r.evaluation.champion_metrics
        where = f"On {count(ours.cells, 'cell')} of {count(ours.patients, 'holdout patient')}"
    elif r.challenger is not None:
        ours, theirs = r.challenger.validation, r.decision.champion_on_validation
        where = "On the validation patients, which the model was chosen on: no proof. The holdout was not looked at"
    elif r.champion_candidate is not None:
        theirs = r.champion_candidate.validation
        where = "The champion on its validation patients, when it was trained"
    known = [m for m in (ours or theirs, theirs) if m is not None]
    shown = [v for m in known for v in (m.accuracy, m.balanced_accuracy, m.specificity, m.sensitivity) if v is not None]
    return {"where": where, "challenger": ours, "champion": theirs, "level": level(shown[0]) if shown else ""}


def _difference_level(e: Evaluation | None) -> str:
    """The level of the paired differences, which is tonight's and not that of the other intervals."""
    return next((level(interval) for interval in e.differences.values()), "") if e else ""


def _scores(r: ReportInputs) -> list[plots.Scores]:
    if r.evaluation is None or r.predictions is None:
        return []
    ours, theirs = r.evaluation.challenger_metrics, r.evaluation.champion_metrics
    found: list[plots.Scores] = []
    sides: list[tuple[plots.Role, Metrics | None]] = [("challenger", ours), ("champion", theirs)]
    for role, metrics in sides:
        probabilities = r.predictions[role].to_numpy(dtype=np.float64)
        known = np.isfinite(probabilities)
        if metrics is not None and known.any():
            labels = r.predictions["label"].to_numpy(dtype=np.int64)[known]
            found.append(plots.Scores(role, labels, probabilities[known], metrics.threshold))
    return found


def _figures(r: ReportInputs) -> dict[str, Any]:
    scores = _scores(r)
    learning = [plots.learning_plot(c, f"learning-{i}") for i, c in enumerate(r.candidates)]

    def safe(svg: str | None) -> Markup | None:
        return Markup(svg) if svg else None  # noqa: S704 - drawn by report_plots from numbers, labels escaped there

    return {
        "roc": safe(plots.roc_plot(scores)),
        "precision_recall": safe(plots.precision_recall_plot(scores)),
        "scores": [(s.role, safe(plots.score_plot(s))) for s in scores],
        "learning": [safe(svg) for svg in learning],
    }


def worst_patients(r: ReportInputs) -> list[dict[str, Any]]:
    """Holdout patients with the lowest accuracy first; ties by number of mistakes, then by name."""
    if r.evaluation is None or r.predictions is None:
        return []
    ours, theirs = r.evaluation.challenger_metrics, r.evaluation.champion_metrics
    rows: dict[str, dict[str, Any]] = {}
    columns = (r.predictions[name].tolist() for name in ("patient", "label", "challenger", "champion"))
    for patient, label, challenger, champion in zip(*columns, strict=True):
        row = rows.setdefault(
            str(patient), dict.fromkeys(("cells", "infected", "missed", "false_alarms", "champion"), 0)
        )
        infected, called = label == 1, challenger >= ours.threshold
        row["cells"] += 1
        row["infected"] += infected
        row["missed"] += infected and not called
        row["false_alarms"] += called and not infected
        row["champion"] += theirs is not None and (champion >= theirs.threshold) != infected
    for patient, row in rows.items():
        row["patient"], row["mistakes"] = patient, row["missed"] + row["false_alarms"]
        row["accuracy"] = 1 - row["mistakes"] / row["cells"]
    return sorted(rows.values(), key=lambda row: (row["accuracy"], -row["mistakes"], row["patient"]))
