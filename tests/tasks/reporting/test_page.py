"""The report page: the right words for each verdict, nothing that acts, the same bytes each time."""

from __future__ import annotations

import re
from dataclasses import replace
from html import escape, unescape
from html.parser import HTMLParser

import pandas as pd
import pytest
from sklearn.metrics import classification_report, f1_score, matthews_corrcoef, precision_score

from tasks.reporting.format import shorten
from tasks.reporting.inputs import ReportInputs
from tasks.reporting.page import render_report
from tasks.reporting.subgroups import stain_groups, worst_patients
from tasks.reporting.words.reasons import changes
from tests.tasks.reporting.samples import (
    bare,
    cells,
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
    body = re.sub(r"</(?:dt|dd|th|td|li|p|small|h\d)>|(?<=[^\s>])<(?=div|p|td|th|small)", r" \g<0>", body)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", "", body)))


NIGHTS: dict[str, tuple[ReportInputs, list[str], list[str]]] = {
    "promoted": (
        full_inputs(),
        [
            "All 6 conditions held. Balanced accuracy is 2.30 points higher, and surely at least 0.14 points higher. "
            "Sensitivity is 4.00 points higher and may be up to 0.60 points lower, where up to 1.00 lower is "
            "tolerated.",
            "Version 8 (fastai) is champion now: better than version 7",
            "the chance of promoting it tonight would be 0.21%",
            "look 2 of the 24 that share a risk of 5%",
            "balanced accuracy is between +0.1 and +4.1 points: surely better",
            'Put version 7 back retrain rollback --why "REASON"',
            "So it replaced the champion.",
            "From now on",
            "it misses",
            "scored the same 1,000 cells of 20 holdout patients",
        ],
        ["Nothing changes", "did not hold"],
    ),
    "first champion": (
        first_champion(),
        [
            "no champion to compare it with, so only the floors applied",
            "So it is the first champion.",
            "it misses",
            "sensitivity between",
            "Nothing was compared.",
            "There is no earlier version to go back to.",
        ],
        ["instead of", "replaced", "the champion stays", "rollback"],
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
            "they flatter, and prove nothing about other patients",
            'retrain promote 94c7d03b1f6e28a5d9410c3e --why "REASON"',
        ],
        ["conditions held", "it misses", "chance of promoting"],
    ),
    "kept by gates": (
        full_inputs(Verdict.KEPT, gates=gates("superior balanced accuracy", "sensitivity not worse")),
        [
            "2 of 6 conditions did not hold.",
            "Balanced accuracy is 2.30 points higher, but may be up to 1.00 points lower: it must surely be higher.",
            "may be up to 2.00 points lower, where up to 1.00 lower is tolerated.",
            "the fastai challenger is not shown to be better, and may lose too much sensitivity.",
            "The other 4 conditions held. So the champion stays.",
            "it would miss",
            "Nothing changes",
        ],
        ["not looked at", "From now on"],
    ),
    "undecided": (
        full_inputs(
            Verdict.UNDECIDED,
            gates=gates("superior balanced accuracy"),
            further_patients=40,
            detectable_difference=0.021,
        ),
        [
            "so the champion stays for now",
            "About 40 further holdout patients would settle it.",
            "would miss",
            "it may be better or worse",
            "A true difference of 2.1 points or more would probably have shown",
            "retrain import FOLDER",
        ],
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
            'retrain approve 94c7d03b1f6e28a5d9410c3e --why "REASON"',
            'retrain reject 94c7d03b1f6e28a5d9410c3e --why "REASON"',
        ],
        ["From now on", "replaced"],
    ),
    "champion unusable": (
        unusable(),
        [
            "could not be loaded or scored: no ONNX model at all.",
            "counts as beaten by nobody",
            "predictions by the champion cannot be relied on",
            "The last report on a champion that worked: decision 111111111111111111111111",
            'Go back to the version before retrain rollback --why "REASON"',
            "Then run the night again retrain run",
        ],
        ["From now on", "replaced", "goes on as before"],
    ),
    "nothing new": (
        nothing_new(),
        [
            "6,890 labelled images, the same as at the last snapshot",
            "Nothing was trained and the holdout was not looked at; the champion (version 7, keras) stays.",
            "What was decided on this data: decision",
            "Nothing was measured tonight",
        ],
        ["conditions held", "failed its", "misses"],
    ),
    "invalid data": (
        invalid(),
        [
            "Tonight's data failed 1 of 2 checks",
            "Class balance: expected each class at least 20%, observed 3% Parasitized.",
            "the champion (version 7) is untouched",
            "chance has no part in it",
            "Mend the data in the bucket",
            "Set aside",
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
            "On so few patients or cells no interval can be trusted",
        ],
        ["nan", "None", "surely"],
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
    assert f"The decision as it was recorded: {inputs.decision.sentence}" in text
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
    assert not outline.tags & {"script", "iframe", "object", "embed", "img", "form"}
    ours = re.compile(r"data:,|#[\w-]+|data:image/webp;base64,[A-Za-z0-9+/=]+|[\w-]+\.html")
    assert all(ours.fullmatch(a) for a in outline.addresses)
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
    shown = cells(predictions(60, 3)).assign(patient=HOSTILE.rstrip("\ud800") * 1_000, note="n" * 1_000_000)
    shown["key"] = HOSTILE.rstrip("\ud800") + "k" * 1_000_000
    page = render_report(replace(made, predictions=table, validation=found, settings=named, cells=shown, facts=None))
    outline = Outline()
    outline.feed(page)
    assert not outline.tags & {"script", "img"}
    assert not outline.named
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00\x1b\ud800]", page)
    assert "⟨U+202E⟩" in page
    assert "P" * 41 not in page
    assert "{{ 7*7 }}" in page
    page.encode()
    assert len(page) < 700_000


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
    assert words in text_of(render_report(not_looked(Verdict.KEPT, synthetic=True)))


def test_the_other_cnn_stands_beside_the_two_only_where_it_was_scored(pages: dict[str, str]) -> None:
    unseen = "The keras model was not the challenger: the holdout was not shown to it"
    assert unseen not in text_of(pages["promoted"])
    assert "Other CNN, threshold 0.410" in pages["promoted"]
    made = full_inputs()
    assert made.evaluation is not None
    assert made.predictions is not None
    before = made.evaluation.model_copy(update={"other": None, "other_metrics": None, "milliseconds": {}})
    page = render_report(replace(made, evaluation=before, predictions=made.predictions.drop(columns="other")))
    assert unseen in text_of(page)
    assert "Other CNN" not in text_of(page)
    assert "not measured" in text_of(page)


def test_records_of_an_older_program_make_a_page_too() -> None:
    """No exhibits, no facts, no memory, no revision: what was not kept is said, not guessed."""
    made = full_inputs()
    older = made.night.model_copy(update={"memory_mb": {}, "revision": None, "hardware": None, "versions": {}})
    text = text_of(render_report(replace(made, night=older, exhibits=None, cells=None, facts=None)))
    assert "Git revision not recorded" in text
    assert "Challenger right, champion wrong" not in text
    assert "by the design of the tests." in text


def test_the_side_by_side_figures_agree_with_scikit_learn(pages: dict[str, str]) -> None:
    made = full_inputs()
    assert made.predictions is not None
    labels, called = made.predictions["label"], made.predictions["challenger"] >= 0.44
    text = text_of(pages["promoted"])
    assert f"{100 * precision_score(labels, called):.1f}%" in text
    for value in (f1_score(labels, called), matthews_corrcoef(labels, called)):
        assert f"{value:.3f}" in text
    printed = classification_report(labels, called, target_names=["Uninfected", "Parasitized"], digits=4).rstrip()
    assert escape(printed) in pages["promoted"]


def test_each_picture_is_in_the_page_once_and_told_in_words(pages: dict[str, str]) -> None:
    page, made = pages["promoted"], full_inputs()
    assert made.cells is not None
    different = {data for data in made.cells["image"] if data}
    assert page.count("data:image/webp") == len(different)
    assert page.count("<use ") > len(different)
    assert page.count('<svg class="cell"') == page.count('role="img" aria-label="Cell filed as') + 3
    assert "No picture. Image; truncated: ends after 312 of 8,201 bytes" in page


def test_all_keys_of_the_label_disputes_are_listed_and_no_label_is_changed(pages: dict[str, str]) -> None:
    made = full_inputs()
    assert made.cells is not None
    disputes = made.cells[made.cells["gallery"] == "disputes"]
    assert len(disputes)
    assert all(key in pages["promoted"] for key in disputes["key"])
    assert "no label is ever changed" in text_of(pages["promoted"])


def test_what_was_left_out_is_said(pages: dict[str, str]) -> None:
    assert "Heat maps of 2 further cells: the model is too slow here." in text_of(pages["promoted"])


def test_the_ledger_is_shown_with_what_is_left(pages: dict[str, str]) -> None:
    assert "The ledger: 0.0042 of 0.0500 spent, 2 of 24 looks" in text_of(pages["promoted"])


def test_the_data_docs_are_linked_where_there_are_any(pages: dict[str, str]) -> None:
    docs = "retraining/validations/abc.docs/index.html"
    page = render_report(replace(invalid(), data_docs=docs))
    assert 'href="../validations/abc.docs/index.html"' in page
    assert "Data Docs" not in pages["invalid data"]


SECRETS = (
    "http://user:hunter2@host/x",
    "https://b.s3.amazonaws.com/k?X-Amz-Signature=0123abcd&X-Amz-Credential=AKIAABCDEFGHIJKLMNOP",
    "token in https://host/?access_token=verysecret",
)


def test_nothing_secret_reaches_a_page() -> None:
    problem = f"could not be fetched: {' '.join(SECRETS)}"
    made = not_looked(Verdict.KEPT, champion_problem=problem, failed_trainings={"keras": problem}, sentence=problem)
    page = render_report(replace(made, settings={"store": SECRETS[0], "store_endpoint": SECRETS[1]}))
    for secret in ("hunter2", "0123abcd", "AKIAABCDEFGHIJKLMNOP", "verysecret"):
        assert secret not in page
    assert "http://user:***@host/x" in page


def test_one_failed_training_is_told_before_the_reasons() -> None:
    made = not_looked(Verdict.KEPT, failed_trainings={"keras": "its worker was killed"}, candidates=("a" * 64,))
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


def test_patients_are_grouped_by_stain_not_cells() -> None:
    made = full_inputs()
    groups = stain_groups(made)
    assert [g["group"] for g in groups] == ["Darkest third", "Middle third", "Palest third"]
    assert sum(g["patients"] for g in groups) == 20
    assert sum(g["cells"] for g in groups) == 1_000
    assert groups[0]["to"] <= groups[1]["from"]
    assert stain_groups(replace(made, facts=None)) == []


def test_nothing_is_promised_without_a_look() -> None:
    assert changes(not_looked(Verdict.KEPT)) == []


def test_a_training_without_a_single_number_is_told() -> None:
    made = not_looked(Verdict.KEPT)
    broken = tuple(e.model_copy(update={"valid_loss": float("nan")}) for e in made.candidates[1].history)
    odd = made.candidates[1].model_copy(update={"history": broken})
    text = text_of(render_report(replace(made, candidates=(made.candidates[0], odd))))
    assert "No loss of this training was recorded as a number." in text
