"""The report page: the facts of each verdict, nothing that acts, the same bytes each time."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from html import escape, unescape
from html.parser import HTMLParser
from typing import Any

import pandas as pd
import pytest
from sklearn.metrics import classification_report, f1_score, matthews_corrcoef, precision_score

from tasks.reporting.format import shorten
from tasks.reporting.inputs import ReportInputs
from tasks.reporting.page import render_report
from tasks.reporting.pictures.gallery import galleries
from tasks.reporting.subgroups import stain_groups, worst_patients
from tasks.reporting.words.headline import verdict_name
from tests.tasks.reporting.samples import (
    CHAMPION,
    NO_LOOK,
    bare,
    best_case,
    cells,
    first_champion,
    full_inputs,
    gates,
    in_the_field,
    invalid,
    not_looked,
    nothing_new,
    one_class,
    predictions,
    some_metrics,
    unusable,
)
from validation.records import ApprovalAnswer, ApprovalRequest, Finding, Gate, Verdict


def text_of(page: str) -> str:
    """What a reader reads: no tags, no style sheet, single spaces."""
    body = page[page.index("<body>") :]
    body = re.sub(r"</(?:dt|dd|th|td|li|p|small|h\d)>|(?<=[^\s>])<(?=div|p|td|th|small)", r" \g<0>", body)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", "", body)))


# Each night: its inputs, facts that its page states, and words that would be wrong on its first screen. A tuple is
# facts that one paragraph states together.
NIGHTS: dict[str, tuple[ReportInputs, list[str | tuple[str, ...]], list[str]]] = {
    "promoted": (
        full_inputs(),
        [
            ("All 6 conditions passed", "Balanced accuracy", "2.30 points higher", "0.14 points higher"),
            ("Sensitivity", "4.00 points higher", "0.60 points lower", "1.00 points lower", "tolerated"),
            ("Version 8 (fastai)", "replaces version 7", "fewer mistakes", "not worse by more than 1 point"),
            ("no better", "1 of 476 looks", "look 2 of the 24", "5%"),
            ("chance alone does not explain", "balanced accuracy", "between +0.1 and +4.1 points", "99.58%"),
            ("version 7 back", 'retrain rollback --why "REASON"'),
            "replaced the champion",
            "version 8, the model in use from now on",
            ("1,000 cells", "20 judging patients"),
            ("chosen by these figures", "a little", "too modest"),
            "20 patients whom neither had seen",
            "Not a medical device",
        ],
        ["Nothing changes", "conditions failed", "worse in nothing", "0.21%", "not used"],
    ),
    "first champion": (
        first_champion(),
        [("no champion to compare", "the floors counted", "All 3 conditions passed"),
         ("the first champion", "compared with no other model"), ("patients like these 20", "sensitivity between"),
         ("lower bounds", "floors"), "no earlier version"],
        ["Promoted", "replaced", "the champion stays", "rollback", "certain", "neither had seen", "fewer mistakes",
         "chosen by these figures", "lower bound 0.9800"],
    ),
    "first champion refused": (
        first_champion(Verdict.KEPT, ("AUC floor",)),
        ["1 of 3 conditions", ("AUC is 0.8500", "lower bound 0.8400", "at least 0.9000"), "still no champion",
         "the challenger, which is not used"],
        ["the champion stays", "from now on"],
    ),
    "kept on tuning patients": (
        not_looked(Verdict.KEPT, tuning={"challenger": some_metrics(0.947), "champion": some_metrics(0.951)}),
        [
            ("tuning patients", "94.70%", "95.10%", "did not beat the champion"),
            ("No look was taken", "nothing of the error budget"),
            "the champion stays",
            ("tuning patients", "flatter", "prove nothing"),
            'retrain promote 94c7d03b1f6e28a5d9410c3e --why "REASON"',
        ],
        ["conditions passed", "Infected cells missed", "no better"],
    ),
    "kept by gates": (
        full_inputs(Verdict.KEPT, gates=gates("superior balanced accuracy", "sensitivity not worse")),
        [
            ("2 of 6 conditions", "Balanced accuracy", "2.30 points higher", "1.00 points lower", "must be higher"),
            ("Sensitivity", "2.00 points lower", "up to 1.00 points lower is tolerated"),
            ("fastai challenger", "not shown to be better", "may lose too much sensitivity"),
            ("other 4 conditions passed", "the champion stays"),
            "Nothing changes",
            "version 7, the model in use",
        ],
        ["No look", "from now on", "chosen by these figures"],
    ),
    "undecided": (
        full_inputs(
            Verdict.UNDECIDED,
            gates=gates("superior balanced accuracy"),
            further_patients=40,
            detectable_difference=0.021,
        ),
        ["the champion stays for now", "40 further patients", ("cannot show", "fewer mistakes or more"),
         ("truly better by 2.1 points", "probably have passed all conditions"), "retrain import FOLDER"],
        ["from now on"],
    ),
    "undecided, no estimate": (
        full_inputs(Verdict.UNDECIDED, gates=gates("superior balanced accuracy")),
        [("further patients", "cannot be estimated"), "too modest"],
        ["None further", "About"],
    ),
    "looks used up": (
        not_looked(Verdict.UNDECIDED, not_looked="24 looks were taken in 365 days"),
        [
            ("94.70%", "93.80%"),
            ("No look was taken", "nothing of the error budget was spent: 24 looks were taken in 365 days"),
            ("nothing can be decided", "the champion stays for now"),
            "retrain looks",
        ],
        ["further", "did not beat", "conditions"],
    ),
    "nothing could pass": (
        best_case(),
        [
            ("No look was taken", f"nothing of the error budget was spent: {NO_LOOK}"),
            ("differ on cells of 5 patients", "at least 9 needed"),
            ("or sensitivity", "worth 6.9 of equal size", "more than 8.2 needed"),
            ("About 17 further patients", "worth taking"),
            "the best case, in which the challenger is right wherever the two differ",
            "retrain import FOLDER",
        ],
        ["20 to judge by", "against the reference", "did not beat", "conditions passed", "retrain looks"],
    ),
    "awaiting approval": (
        full_inputs(Verdict.AWAITING_APPROVAL),
        [
            "All 6 conditions passed",
            ("approve or reject", "the champion stays"),
            ("What would change", "per 1,000 cells"),
            "the challenger, if it is approved",
            'retrain approve 94c7d03b1f6e28a5d9410c3e --name "YOUR NAME" --why "REASON"',
            'retrain reject 94c7d03b1f6e28a5d9410c3e --name "YOUR NAME" --why "REASON"',
        ],
        ["from now on", "replaced"],
    ),
    "champion unusable": (
        unusable(),
        [
            ("version 7", "could not be loaded or scored", "no ONNX model at all"),
            ("not count as beaten", "nothing was compared"),
            ("cannot be used", "Nothing was promoted"),
            "cannot be relied on",
            "decision 111111111111111111111111",
            'retrain rollback --why "REASON"',
            "retrain run",
        ],
        ["from now on", "replaced", "Infected cells missed"],
    ),
    "nothing new": (
        nothing_new(),
        [
            ("6,890 labelled images", "the same as at the last snapshot"),
            ("Nothing was trained", "the champion (version 7, keras) stays"),
            "decision 94c7d03b1f6e28a5d9410c3e",
            "Nothing was measured tonight",
        ],
        ["conditions passed", "failed its", "cells missed"],
    ),
    "invalid data": (
        invalid(),
        [
            ("failed 1 of 2 checks", "Class balance", "each class at least 20%", "3% Parasitized"),
            ("the champion (version 7)", "untouched"),
            "chance",
            ("the data in the bucket", "retrain settings", "retrain run"),
            "Set aside",
        ],
        ["brightness:", "The same as"],
    ),
    "all trainings failed": (
        bare(Verdict.KEPT, failed_trainings={"fastai": "CUDA out of memory", "keras": "loss is not a number"}),
        [
            ("fastai training", "CUDA out of memory"),
            ("keras training", "loss is not a number"),
            "No training ended with a model",
            "the champion stays",
        ],
        ["cells missed"],
    ),
    "no cells of a class": (
        one_class(),
        [
            "not defined (no cells of the class)",
            ("Infected cells missed", "no cells"),
            "ROC: not defined",
            ("so few patients or cells", "no interval can be trusted"),
            ("3 patients to judge by", "at least 8"),
        ],
        ["nan", "None", "clearly"],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return {name: render_report(inputs) for name, (inputs, _, _) in NIGHTS.items()}


@pytest.mark.parametrize("name", NIGHTS)
def test_each_night_states_its_facts(name: str, pages: dict[str, str]) -> None:
    inputs, facts, wrong = NIGHTS[name]
    text = text_of(pages[name])
    shown = verdict_name(inputs.decision.verdict, has_champion=inputs.has_champion)
    assert shown.capitalize() in text
    assert inputs.decision.sentence in text
    paragraphs = [text_of(f"<body>{part}") for part in re.split(r"<(?=p\b|section|li\b|tr\b|figure)", pages[name])]
    for fact in facts:
        together = (fact,) if isinstance(fact, str) else fact
        assert any(all(words in part for words in together) for part in paragraphs), fact
    first_screen = text[: text.index("Conditions of a promotion")]
    for words in wrong:
        assert words not in first_screen


@pytest.mark.parametrize(("name", "missing"), [("promoted", "0.14 points higher"), ("undecided", "40 further")])
def test_a_missing_fact_is_noticed(name: str, missing: str, pages: dict[str, str]) -> None:
    assert missing in text_of(pages[name])
    with pytest.raises(AssertionError):
        test_each_night_states_its_facts(name, {name: pages[name].replace(missing, "")})


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
    internal = re.compile(r"data:,|#[\w-]+|data:image/webp;base64,[A-Za-z0-9+/=]+|[\w-]+\.html")
    assert all(internal.fullmatch(a) for a in outline.addresses)
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


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=y>\u202egnp.\x00\x1b[31m\ud800"


def test_hostile_names_are_text_and_short() -> None:
    table = predictions(60, 3)
    table["patient"] = [HOSTILE.rstrip("\ud800"), "P" * 1_000_000, "$x_1$ {{ 7*7 }}"] * 20
    table["key"] = HOSTILE.rstrip("\ud800")
    odd = Finding(reason=HOSTILE, key=HOSTILE + "k" * 1_000_000, detail=HOSTILE + "d" * 1_000_000)
    made = full_inputs(failed_trainings={HOSTILE: HOSTILE * 10_000}, sentence=HOSTILE)
    validation = made.validation.model_copy(update={"examples": (odd,), "reasons": {HOSTILE: 1}})
    night = made.night.model_copy(update={"settings": {HOSTILE: HOSTILE}})
    shown = cells(predictions(60, 3)).assign(patient=HOSTILE.rstrip("\ud800") * 1_000, note="n" * 1_000_000)
    shown["key"] = HOSTILE.rstrip("\ud800") + "k" * 1_000_000
    page = render_report(replace(made, predictions=table, validation=validation, night=night, cells=shown, facts=None))
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
def test_shorten_keeps_both_ends_and_spells_out_control_marks(text: str, shown: str) -> None:
    assert shorten(text) == shown


def test_shorten_bounds_spelled_out_marks() -> None:
    assert len(shorten("\u202e" * 79)) <= 80


def test_the_synthetic_banner_is_on_synthetic_nights_only(pages: dict[str, str]) -> None:
    synthetic = text_of(render_report(not_looked(Verdict.KEPT, synthetic=True)))
    for words in ("synthetic cells", "not a diagnostic model", "real blood films"):
        assert words not in text_of(pages["promoted"])
        assert words in synthetic


def test_the_other_cnn_is_shown_beside_the_two_only_where_it_was_scored(pages: dict[str, str]) -> None:
    unseen = "The keras model was not the challenger and was not judged"
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
    """No exhibits, no facts, no memory, no revision: what was not recorded is stated, not guessed."""
    made = full_inputs()
    older = made.night.model_copy(update={"memory_mb": {}, "revision": None, "hardware": None, "versions": {}})
    text = text_of(render_report(replace(made, night=older, exhibits=None, cells=None, facts=None)))
    assert "Git revision not recorded" in text
    assert "Challenger right, champion wrong" not in text
    assert "1 of 476 looks" in text
    assert "look 2 of" not in text


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


def test_each_cell_is_shown_once_and_described_in_words(pages: dict[str, str]) -> None:
    page, made = pages["promoted"], full_inputs()
    assert made.cells is not None
    used = re.findall(r'<use href="#(i\d+)"', page)
    drawn = made.cells[made.cells["image"] != b""]
    heat = drawn[drawn["gallery"] == "heat"]
    others = drawn[(drawn["gallery"] != "heat") & ~drawn["sha256"].isin(set(heat["sha256"]))]
    # Pictures without a digest are the two batches and the one that was set aside.
    assert len(used) == len(heat) + others["sha256"].nunique() - 1 + 3
    assert page.count("data:image/webp") == len(set(used))
    assert page.count('role="img" aria-label="Cell filed ') == len(used) - 3
    assert "No picture. Image; truncated: ends after 312 of 8,201 bytes" in page


def test_a_cell_says_how_it_is_filed_and_called_and_why_else_it_is_there(pages: dict[str, str]) -> None:
    made = full_inputs()
    assert made.predictions is not None
    assert made.cells is not None
    shown = {gallery.name: gallery for gallery in galleries(made)[0]}
    known = made.predictions.set_index("key")
    mistakes = set(made.cells[made.cells["gallery"] == "mistakes"]["key"])
    assert any(cell.key in mistakes for cell in shown["lost"].cells)
    for cell in shown["lost"].cells:
        row = known.loc[cell.key]
        filed, called = ("infected" if yes else "uninfected" for yes in (row["label"] == 1, row["challenger"] >= 0.44))
        assert cell.caption == f"filed {filed}, called {called}"
        assert cell.is_wrong
        assert ("confident mistake" in cell.badges) == (cell.key in mistakes)
        assert cell.name in cell.key
    assert not any(cell.is_wrong for cell in shown["gained"].cells)
    assert shown["mistakes"].elsewhere > 0
    assert f"{shown['mistakes'].elsewhere} of them under another heading" in text_of(pages["promoted"])


def test_all_keys_of_the_label_disputes_are_listed_and_no_label_is_changed(pages: dict[str, str]) -> None:
    made = full_inputs()
    assert made.cells is not None
    disputes = made.cells[made.cells["gallery"] == "disputes"]
    assert len(disputes)
    assert all(key in pages["promoted"] for key in disputes["key"])
    assert "no label is ever changed" in text_of(pages["promoted"])


def test_what_was_left_out_is_named(pages: dict[str, str]) -> None:
    assert "Heat maps of 2 further cells: the model is too slow here." in text_of(pages["promoted"])


def test_the_ledger_is_shown_with_its_budget(pages: dict[str, str]) -> None:
    for fact in ("0.0042 of 0.0500 spent", "2 of 24 looks"):
        assert fact in text_of(pages["promoted"])


def test_the_data_docs_are_linked_where_there_are_any(pages: dict[str, str]) -> None:
    docs = "retraining/validations/abc.docs/index.html"
    made = invalid()
    page = render_report(replace(made, validation=made.validation.model_copy(update={"data_docs": docs})))
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
    settings = {"store": SECRETS[0], "store_endpoint": SECRETS[1]}
    page = render_report(replace(made, night=made.night.model_copy(update={"settings": settings})))
    for secret in ("hunter2", "0123abcd", "AKIAABCDEFGHIJKLMNOP", "verysecret"):
        assert secret not in page
    assert "http://***@host/x" in page


def test_a_failed_training_is_named_before_the_reasons() -> None:
    made = not_looked(
        Verdict.KEPT,
        failed_trainings={"keras": "its worker was killed", "fastai, member 3": "too slow"},
        candidates=("a" * 64,),
    )
    text = text_of(render_report(replace(made, candidates=made.candidates[:1])))
    assert text.index("keras training") < text.index("its worker was killed") < text.index("Why")
    assert "The fastai member 3 training ended without a model too slow" in text


def test_a_gpu_that_was_not_used_is_named_before_the_reasons() -> None:
    made = full_inputs()
    night = made.night.model_copy(update={"unused_gpus": {"keras": "GPU 0 is not used: <why>"}})
    text = text_of(render_report(replace(made, night=night)))
    assert text.index("keras was trained on the CPU GPU 0 is not used: <why>") < text.index("Why")


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
    assert [row["group"] for row in rows] == ["worse", "bad", "good"]
    assert [(row["missed"], row["false_alarms"], row["champion"]) for row in rows] == [(0, 1, 0), (1, 0, 1), (0, 0, 0)]


def test_patients_are_grouped_by_stain_not_cells() -> None:
    made = full_inputs()
    groups = stain_groups(made)
    assert [g["group"] for g in groups] == ["Darkest third", "Middle third", "Palest third"]
    assert sum(g["patients"] for g in groups) == 20
    assert sum(g["cells"] for g in groups) == 1_000
    assert groups[0]["to"] <= groups[1]["from"]
    assert stain_groups(replace(made, facts=None)) == []


def test_a_training_without_a_single_number_is_reported() -> None:
    made = not_looked(Verdict.KEPT)
    members = made.candidates[1].members
    broken = [
        m.model_copy(update={"history": tuple(e.model_copy(update={"valid_loss": float("nan")}) for e in m.history)})
        for m in members
    ]
    odd = made.candidates[1].model_copy(update={"members": tuple(broken)})
    text = text_of(render_report(replace(made, candidates=(made.candidates[0], odd))))
    assert "No loss of these trainings was recorded as a number." in text


def test_all_members_of_a_cnn_are_in_one_figure_and_one_table(pages: dict[str, str]) -> None:
    page = pages["promoted"]
    assert page.count("Loss by epoch of 5 members, at most 11 epochs; kept: 8, 7, 6, 5, 4.") == 1
    assert re.search(r"5 98, 4,826 14 4 of 7 early 2 min 11 s 2,214 MB", text_of(page))


def test_a_missing_member_is_named_with_its_reason_and_what_it_costs() -> None:
    made = full_inputs(Verdict.KEPT)
    candidate, evaluation = made.candidates[0], made.evaluation
    assert evaluation is not None
    lacking = candidate.model_copy(
        update={"members": candidate.members[:2] + candidate.members[3:], "missing": {2: "loss is not a number"}}
    )
    unjudged = "4 of 20 patients do not judge: the challenger has 4 of 5 members"
    shown = replace(
        made,
        candidates=(lacking, made.candidates[1]),
        evaluation=evaluation.model_copy(update={"unjudged": unjudged}),
    )
    text = text_of(render_report(shown))
    assert "Members 4 of 5" in text
    assert "3 ✕ Missing: loss is not a number" in text
    assert unjudged in text[: text.index("Conditions of a promotion")]


def test_the_reference_is_named_where_there_is_one(pages: dict[str, str]) -> None:
    made = full_inputs()
    assert made.evaluation is not None
    reference = CHAMPION.model_copy(update={"version": "2"})
    shown = made.evaluation.model_copy(update={"reference": reference})
    assert "small losses are measured against is version 2, keras" in text_of(
        render_report(replace(made, evaluation=shown))
    )
    assert "small losses" not in text_of(pages["promoted"])


def test_what_was_promised_is_beside_what_was_found_by_month(pages: dict[str, str]) -> None:
    text = text_of(render_report(in_the_field()))
    for fact in ("Sensitivity 93.0% 91.5–94.5 88.1% 86.1–90.1", "2026-02 31 91.2% 95.1%", "2026-03 14 no cells 94.4%"):
        assert fact in text
    assert "worse than promised" not in text
    assert "Promised and found" not in text_of(pages["kept by gates"])


def test_a_champion_that_is_worse_than_promised_is_named_before_all_else() -> None:
    page = render_report(in_the_field("sensitivity"))
    text = text_of(page)
    assert text.index("worse than promised") < text.index("per 1,000 cells")
    assert "the sensitivity of version 7 cannot be what was promised" in text
    assert page.count("✕ worse than promised") == 1


def test_a_champion_that_only_the_decision_names_is_no_missing_one() -> None:
    made = full_inputs()
    night = made.night.model_copy(update={"champion_before": None})
    page = render_report(replace(made, night=night))
    assert "First champion" not in page
    assert "Promoted</h1>" in page


def awaiting(**found: Any) -> ReportInputs:
    made = full_inputs(Verdict.AWAITING_APPROVAL)
    end = made.night.finished_at
    request = ApprovalRequest(
        decision=made.decision.id, challenger="a" * 64, champion=CHAMPION, sentence="It is better", requested_at=end,
        expires_at=end + timedelta(hours=72),
    )  # fmt: skip
    return replace(made, **{"request": request, **found})


def test_a_decision_that_waits_says_as_of_when_and_until_when_and_links_its_form() -> None:
    text = text_of(render_report(awaiting()))
    assert "Open the form" not in text
    request = awaiting().request
    assert request is not None
    for form, is_link in (("https://prefect.example.org/run?a=1&b=2", True), ("javascript:alert(1)", False)):
        page = render_report(awaiting(request=request.model_copy(update={"form_url": form})))
        assert (f'<a href="{escape(form)}">Open the form</a>' in page) is is_link
        assert ("javascript:" in page) is False
    assert "As of 2026-03-14 02:22 UTC it waits for a person, until 2026-03-17 02:22 UTC" in text


@pytest.mark.parametrize(
    ("reply", "facts", "wrong"),
    [
        (
            "approve",
            ["by Ann: ok", "it became champion", "retrain rollback", "was approved"],
            "Nothing changes",
        ),
        (
            "reject",
            [
                "by Ann: ok",
                "a person rejected it",
                "rejection can be overruled",
                "Version 7 stays champion",
                "Nothing changes",
                "retrain promote",
            ],
            "rollback",
        ),
    ],
)
def test_an_answered_decision_shows_its_answer_and_asks_for_none(reply: Any, facts: list[str], wrong: str) -> None:
    at = full_inputs().night.finished_at
    text = text_of(
        render_report(awaiting(answer=ApprovalAnswer(decision="d", answer=reply, who="Ann", why="ok", at=at)))
    )
    for fact in (*facts, "As of 2026-03-14 02:22 UTC", "left to a person"):
        assert fact in text
    for words in (wrong, "retrain approve", "must now", "until a person", "if approved"):
        assert words not in text[: text.index("Conditions of a promotion")]


def test_a_loss_against_the_reference_is_told_apart_from_one_against_the_champion() -> None:
    kept = Gate(
        name="sensitivity not worse than the reference", value=0.0, low=-0.02, high=0.02, bound=-0.01, level=0.0021,
        passed=False, sentence="",
    )  # fmt: skip
    text = text_of(render_report(full_inputs(Verdict.KEPT, gates=(*gates(), kept))))
    assert "may lose too much sensitivity against the reference." in text
    assert "Sensitivity against the reference is unchanged, at worst 2.00 points lower" in text


def test_challenger_and_champion_are_shown_on_the_same_tuning_patients() -> None:
    """A champion of 0.1 has seen most of them; the challenger's figures on all of them are not comparable."""
    few = {"challenger": some_metrics(0.912), "champion": some_metrics(0.905)}
    text = text_of(render_report(not_looked(Verdict.KEPT, tuning=few)))
    assert "91.20% against the champion's 90.50%" in text
    assert "94.7%" not in text
