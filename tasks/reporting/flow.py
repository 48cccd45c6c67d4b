"""What became of the images (STARD 2015, its flow diagram), and what is stated of the model and its cells. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd
from rich.filesize import decimal

from infra.settings.groups import AboutSettings
from tasks.reporting.format import count, shorten
from tasks.reporting.inputs import ReportInputs
from validation.patients import site_of
from validation.records import NEGATIVE, POSITIVE, CellCount, Metrics, ValidationResult

# What the settings state, by the words for it.
ABOUT = {
    "labelled_by": "Labelled by",
    "sites": "Sites",
    "owner": "Owner",
    "licence": "Licence",
    "citation": "How to cite",
}


MOST_SITES = 20


class Step(NamedTuple):
    """One box of the flow: how many, of what, in more words; and what leaves it before the next box."""

    amount: str
    what: str
    more: str = ""
    leaves: tuple[str, ...] = ()


def steps(r: ReportInputs) -> list[Step]:
    """Return the flow from the images found to the calls of the judged ones, as far as the night came."""
    found, checked, e = r.snapshot, r.validation, r.evaluation
    classes = ", ".join(f"{shorten(name, 40)} {amount:,}" for name, amount in found.by_class.items())
    changes = f"{found.new:,} new, {found.gone:,} gone since the snapshot before"
    flow = [
        Step(
            f"{found.objects:,}",
            "labelled images found",
            f"{decimal(found.bytes)}; {count(found.patients, 'patient')}. {classes}. {changes}.",
            _set_aside(checked),
        ),
        Step(f"{checked.accepted:,}", f"accepted, of {count(checked.patients, 'patient')}", _sites(r, r.accepted)),
    ]
    if r.split is None:
        return [*flow, Step("None", "trained on", "The night did not get that far.")]
    if r.split.crossed:
        flow[1] = flow[1]._replace(leaves=(f"{r.split.crossed:,} filed under another patient before: left out",))
    alone, judging = r.split.without_patient, r.split.judging
    unjudged: tuple[str, ...] = (f"{count(alone, 'image')} with no patient: trained on, never judged",) if alone else ()
    if e is not None and e.unjudged:
        unjudged += (e.unjudged,)
    named = f", {judging.cells:,} of them of {count(judging.patients, 'patient')}" if alone else f", {_of(judging)}"
    members = "Each member of a CNN is trained without the patients that it judges."
    trained = Step(f"{judging.cells + alone:,}", f"trained on{named}", members, unjudged)
    if e is None:
        return [*flow, trained, Step("None", "judged", "No look was taken.")]
    m = e.challenger_metrics
    judged = CellCount(patients=m.patients, positive=m.tp + m.fn, negative=m.tn + m.fp)
    more = " ".join(filter(None, [_sites(r, r.predictions), _calls(m)]))
    return [*flow, trained, Step(f"{m.cells:,}", f"judged, {_of(judged)}", more)]


def _set_aside(checked: ValidationResult) -> tuple[str, ...]:
    """Return how many images were rejected, by reason; a reason's severity is that of its examples."""
    if not checked.rejected:
        return ()
    reasons = {example.reason for example in checked.examples if example.severity != "warn"}
    amounts = sorted(((n, reason) for reason, n in checked.reasons.items() if reason in reasons), reverse=True)
    words = ", ".join(f"{shorten(reason, 40)} {amount:,}" for amount, reason in amounts)
    several = " (some for several reasons)" if sum(amount for amount, _ in amounts) > checked.rejected else ""
    return (f"{checked.rejected:,} set aside{several}: {words}" if words else f"{checked.rejected:,} set aside",)


def site_pattern(settings: Mapping[str, str]) -> str:
    """Return which part of an image's name is the site, by a night's recorded settings; empty where nothing says it."""
    return settings.get("about.site_pattern", "")


def _sites(r: ReportInputs, images: pd.DataFrame | None) -> str:
    """Return how many patients are of each site, most first; empty where no setting says how sites are named.

    A patient with images of two sites counts at both.
    """
    pattern = site_pattern(r.night.settings)
    if not pattern or images is None:
        return ""
    named = images[images["patient"] != ""]
    sites = named["key"].map(lambda key: site_of(key, pattern) or "")
    found = {str(site): int(amount) for site, amount in named["patient"].groupby(sites).nunique().items()}
    unnamed = found.pop("", 0)
    ranked = sorted(found.items(), key=lambda site: (-site[1], site[0]))
    words = [f"{shorten(name, 40)} {amount:,}" for name, amount in ranked[:MOST_SITES]]
    words += [f"{len(ranked) - MOST_SITES:,} more"] if len(ranked) > MOST_SITES else []
    without = f" {count(unnamed, 'patient')} of no named site." if unnamed else ""
    return f"{count(len(ranked), 'site')}{', patients: ' * bool(words)}{', '.join(words)}.{without}"


def _of(cells: CellCount) -> str:
    parts = f"{cells.positive:,} {POSITIVE}, {cells.negative:,} {NEGATIVE}"
    return f"{parts}, of {count(cells.patients, 'patient')}"


def _calls(m: Metrics) -> str:
    return (
        f"The challenger called {m.tp + m.fp:,} infected ({m.fp:,} wrongly) and {m.tn + m.fn:,} uninfected "
        f"({m.fn:,} wrongly)."
    )


def intended_use(settings: Mapping[str, str]) -> str:
    """Return what the model is for, by a night's recorded settings, and what it is never for."""
    stated = settings.get("about.intended_use") or str(AboutSettings.model_fields["intended_use"].default)
    return f"{stated.strip().rstrip('.')}. Not a medical device. It does not decide whether a patient has malaria."


def stated(settings: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return what a night's recorded settings state of the model and its cells, and what they do not."""
    known = {words: text for name, words in ABOUT.items() if (text := settings.get(f"about.{name}", "").strip())}
    return known, [words for words in ABOUT.values() if words not in known]


def uncounted_sites(settings: Mapping[str, str]) -> str:
    """Return why the flow counts no sites; empty where it does."""
    if site_pattern(settings):
        return ""
    return "Sites are not counted: no setting says which part of an image's name is the site (about.site_pattern)."
