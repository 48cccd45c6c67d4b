"""The report page: the right words for each verdict, nothing that acts, the same bytes each time."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import pandas as pd
import pytest

from tasks.report_format import shorten
from tasks.report_page import ReportInputs, render_report, worst_patients
from tasks.report_words import changes
from tests.tasks.report_samples import (
    bare,
    first_champion,
    full_inputs,
    gates,
    invalid,
    not_looked,
    nothing_new,
    one_class,
    predictions,
    some_metrics,
    unusable,
)
from validation.records import Finding, Verdict


def text_of(page: str) -> str:
    """What a reader reads: no tags, no style sheet, single spaces."""
    body = page[page.index("<body>") :]
    return re.sub(
        r"\s+", " ", unescape(re.sub(r"<[^>]*>", "", re.sub(r"(?<=[^\s>])<(?=div|p|td|th|small)", " <", body)))
    )


NIGHTS: dict[str, tuple[ReportInputs, list[str], list[str]]] = {
    "promoted": (
        full_inputs(),
        [
            "All 6 conditions held. Balanced accuracy is 2.30 points higher, "
            "at tonight's level surely at least 0.14 points higher. Sensitivity is 4.00 points higher,",
            "So it replaced the champion.",
            "From now on",
            "it misses",
            "scored the same 1,000 cells of 20 holdout patients",
        ],
        ["Nothing changes", "did not hold"],
    ),
    "first champion": (
        first_champion(),
        ["no champion to compare it with, so only the floors applied", "So it is the first champion.", "it misses"],
        ["instead of", "replaced", "the champion stays"],
    ),
    "first champion refused": (
        first_champion(Verdict.KEPT, ("AUC floor",)),
        [
            "1 of 3 conditions did not hold.",
            "AUC floor: not shown tonight.",
            "there is still no champion",
            "there is no champion to use",
        ],
        ["the champion stays", "From now on"],
    ),
    "kept on validation": (
        not_looked(Verdict.KEPT, champion_on_validation=some_metrics(0.951)),
        [
            "94.70% against the champion's 95.10%",
            "did not beat the champion there",
            "The holdout was not looked at, and none of its error budget was spent",
            "So the champion stays.",
            "Nothing changes",
        ],
        ["conditions held", "it misses"],
    ),
    "kept by gates": (
        full_inputs(Verdict.KEPT, gates=gates("superior balanced accuracy", "sensitivity not worse")),
        [
            "2 of 6 conditions did not hold.",
            "Balanced accuracy is 2.30 points higher, at tonight's level surely no more than 1.00 points lower, "
            "where it must be higher.",
            "surely no more than 2.00 points lower, where up to 1.00 points lower is tolerated.",
            "The other 4 conditions held. So the champion stays.",
            "it would miss",
            "Nothing changes",
        ],
        ["not looked at", "From now on"],
    ),
    "undecided": (
        full_inputs(Verdict.UNDECIDED, gates=gates("superior balanced accuracy"), further_patients=40),
        ["so the champion stays for now", "About 40 further holdout patients would settle it.", "would miss"],
        ["From now on"],
    ),
    "undecided, no estimate": (
        full_inputs(Verdict.UNDECIDED, gates=gates("superior balanced accuracy")),
        ["How many further holdout patients would settle it cannot be said"],
        ["None further", "About"],
    ),
    "looks used up": (
        not_looked(Verdict.UNDECIDED),
        [
            "94.70% against the champion's 93.80%",
            "The holdout was not looked at, and none of its error budget was spent.",
            "Without a look at the holdout nothing can be decided: the champion stays for now.",
        ],
        ["further", "did not beat", "conditions"],
    ),
    "awaiting approval": (
        full_inputs(Verdict.AWAITING_APPROVAL),
        [
            "All 6 conditions held.",
            "A person must now approve or reject it; until then the champion stays.",
            "Nothing changes until a person approves",
        ],
        ["From now on", "replaced"],
    ),
    "champion unusable": (
        unusable(),
        [
            "could not be loaded or scored: no ONNX model at all.",
            "counts as beaten by nobody",
            "predictions by the champion cannot be relied on",
        ],
        ["From now on", "replaced", "goes on as before"],
    ),
    "nothing new": (
        nothing_new(),
        [
            "6,890 labelled images, the same as at the last snapshot",
            "Nothing was trained and the holdout was not looked at; the champion (version 7, keras) stays.",
        ],
        ["conditions held", "failed its", "misses"],
    ),
    "invalid data": (
        invalid(),
        [
            "Tonight's data failed 1 of 2 checks",
            "Class balance: expected each class at least 20%, observed 3% Parasitized.",
            "the champion (version 7) is untouched",
        ],
        ["brightness: expected", "The same as"],
    ),
    "all trainings failed": (
        bare(Verdict.KEPT, failed_trainings={"fastai": "CUDA out of memory", "keras": "loss is not a number"}),
        [
            "The fastai training ended without a model CUDA out of memory",
            "The keras training ended without a model loss is not",
            "No training ended with a model",
            "So the champion stays.",
        ],
        ["misses"],
    ),
    "no cells of a class": (
        one_class(),
        [
            "not defined (no cells of the class)",
            "Of 1,000 infected cells it would miss a number that is not known",
            "ROC: not defined",
        ],
        ["nan", "None"],
    ),
}


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {name: render_report(inputs) for name, (inputs, _, _) in NIGHTS.items()}


@pytest.mark.parametrize("name", NIGHTS)
def test_each_night_is_told_in_its_own_words(name: str, pages: dict[str, str]) -> None:
    inputs, said, unsaid = NIGHTS[name]
    text = text_of(pages[name])
    assert inputs.decision.verdict.value.capitalize() in text
    assert inputs.decision.sentence in text
    for words in said:
        assert words in text
    first_screen = (
        text[: text.index("Evidence Conditions")]
        if "Evidence Conditions" in text
        else text.split("Conditions of a promotion")[0]
    )
    for words in unsaid:
        assert words not in first_screen


def test_verdicts_are_all_covered() -> None:
    assert {inputs.decision.verdict for inputs, _, _ in NIGHTS.values()} == set(Verdict)


class Outline(HTMLParser):
    """Headings, ids, tags, addresses and inline handlers of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.headings: list[int] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.named: list[str] = []
        self.unscoped = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags.add(tag)
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        self.ids += [given["id"]] if "id" in given else []
        self.addresses += [given[a] for a in ("href", "src", "action", "xlink:href", "data") if a in given]
        self.named += [name for name in given if name.startswith("on")]
        self.unscoped += tag == "th" and "scope" not in given


@pytest.mark.parametrize("name", NIGHTS)
def test_a_page_is_sound_and_asks_nothing_of_the_network(name: str, pages: dict[str, str]) -> None:
    page, outline = pages[name], Outline()
    outline.feed(page)
    assert not outline.tags & {"script", "iframe", "object", "embed", "img", "link"} - {"link"}
    assert all(a == "data:," or a.startswith("#") for a in outline.addresses)
    assert not re.search(r"https?:|url\((?!#)|@import", page)
    assert "default-src 'none'" in page
    assert not outline.named
    assert len(outline.ids) == len(set(outline.ids))
    assert {a[1:] for a in outline.addresses if a.startswith("#")} <= set(outline.ids)
    assert outline.unscoped == 0
    assert outline.headings[0] == 1
    assert outline.headings.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(outline.headings, outline.headings[1:], strict=False))
    assert len(page.encode()) < 600_000


def test_the_same_inputs_give_the_same_bytes(pages: dict[str, str]) -> None:
    assert render_report(full_inputs()) == pages["promoted"]


def test_errors_in_a_thousand_cells_agree_with_the_metrics(pages: dict[str, str]) -> None:
    e = NIGHTS["promoted"][0].evaluation
    assert e is not None
    assert e.champion_metrics is not None
    ours, theirs = e.challenger_metrics, e.champion_metrics
    missed, before = (round(1000 * m.fn / (m.fn + m.tp)) for m in (ours, theirs))
    alarms, alarms_before = (round(1000 * m.fp / (m.fp + m.tn)) for m in (ours, theirs))
    text = text_of(pages["promoted"])
    assert missed != before
    assert f"Of 1,000 infected cells it misses {missed} instead of {before}" in text
    assert f"Of 1,000 uninfected cells it raises a false alarm on {alarms} instead of {alarms_before}" in text
    assert ours.sensitivity is not None
    low, high = round(1000 * (1 - ours.sensitivity.high)), round(1000 * (1 - ours.sensitivity.low))
    assert f"95% interval: {low} to {high}" in text
    gain = e.differences["sensitivity"]
    most, least = round(1000 * gain.high), round(1000 * gain.low)
    assert f"(99.58%): {most} fewer to {abs(least)} {'fewer' if least > 0 else 'more'}" in text


def test_as_many_errors_as_the_champion_are_not_called_a_change() -> None:
    made = full_inputs()
    assert made.evaluation is not None
    same = made.evaluation.model_copy(update={"champion_metrics": made.evaluation.challenger_metrics})
    text = text_of(render_report(replace(made, evaluation=same)))
    assert ", as many as the champion" in text
    assert "instead of" not in text.split("Evidence")[0]


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=y>\u202egnp.\x00\x1b[31m\ud800"


def test_hostile_names_are_text_and_short() -> None:
    table = predictions(60, 3)
    table["patient"] = [HOSTILE.rstrip("\ud800"), "P" * 1_000_000, "$x_1$ {{ 7*7 }}"] * 20
    table["key"] = HOSTILE.rstrip("\ud800")
    odd = Finding(reason=HOSTILE, key=HOSTILE + "k" * 1_000_000, detail=HOSTILE + "d" * 1_000_000)
    made = full_inputs(failed_trainings={HOSTILE: HOSTILE * 10_000}, generation=HOSTILE, sentence=HOSTILE)
    found = made.validation.model_copy(update={"examples": (odd,), "reasons": {HOSTILE: 1}})
    named = {HOSTILE: HOSTILE}
    page = render_report(replace(made, predictions=table, validation=found, settings=named))
    outline = Outline()
    outline.feed(page)
    assert not outline.tags & {"script", "img"}
    assert not outline.named
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00\x1b\ud800]", page)
    assert "⟨U+202E⟩" in page
    assert "P" * 41 not in page
    assert "{{ 7*7 }}" in page
    page.encode()
    assert len(page) < 600_000


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("short.png", "short.png"),
        ("a" * 80, "a" * 80),
        ("a" * 50 + "b" * 50, "a" * 40 + "…" + "b" * 39),
        ("x\u202ey", "x⟨U+202E⟩y"),
        ("e" + "\u0301" * 5, "e" + "\u0301" * 3 + "⟨U+0301⟩" * 2),
    ],
)
def test_shorten_keeps_both_ends_and_shows_what_would_act(text: str, shown: str) -> None:
    assert shorten(text) == shown


def test_shorten_bounds_what_is_spelled_out() -> None:
    assert len(shorten("\u202e" * 79)) <= 80


def test_the_synthetic_banner_stands_on_synthetic_nights_only(pages: dict[str, str]) -> None:
    words = "Trained on synthetic cells: not a diagnostic model"
    assert words not in text_of(pages["promoted"])
    assert words in text_of(render_report(full_inputs(synthetic=True)))


def test_the_other_cnn_never_saw_the_holdout(pages: dict[str, str]) -> None:
    assert "The keras model was not the challenger: the holdout was not shown to it" in text_of(pages["promoted"])


def test_one_failed_training_is_told_before_the_reasons() -> None:
    made = full_inputs(failed_trainings={"keras": "its worker was killed"}, candidates=("a" * 64,))
    text = text_of(render_report(replace(made, candidates=made.candidates[:1])))
    assert text.index("The keras training ended without a model its worker was killed") < text.index("Why")


def test_patients_are_worst_first_and_counted_from_the_predictions() -> None:
    table = pd.DataFrame(
        {
            "key": list("abcd"),
            "sha256": list("abcd"),
            "patient": ["good", "bad", "bad", "worse"],
            "label": [1, 1, 0, 0],
            "challenger": [0.9, 0.1, 0.2, 0.44],
            "champion": [0.9, 0.9, 0.9, 0.1],
        }
    )
    rows = worst_patients(replace(full_inputs(), predictions=table))
    assert [row["patient"] for row in rows] == ["worse", "bad", "good"]
    assert [(row["missed"], row["false_alarms"], row["champion"]) for row in rows] == [(0, 1, 0), (1, 0, 1), (0, 0, 0)]


def test_nothing_is_promised_without_a_look() -> None:
    assert changes(not_looked(Verdict.KEPT)) == []


def test_a_training_without_a_single_number_is_told() -> None:
    made = full_inputs()
    broken = tuple(e.model_copy(update={"valid_loss": float("nan")}) for e in made.candidates[1].history)
    odd = made.candidates[1].model_copy(update={"history": broken})
    text = text_of(render_report(replace(made, candidates=(made.candidates[0], odd))))
    assert "No loss of this training was recorded as a number." in text
