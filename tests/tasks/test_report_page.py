"""The report page: the right words for each verdict, nothing that acts, the same bytes each time."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html import unescape
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks.report_page import ReportInputs, changes, render_report, shorten, worst_patients
from validation.records import (
    Candidate,
    ChampionRef,
    Check,
    Decision,
    EpochRecord,
    Evaluation,
    Finding,
    Gate,
    Interval,
    Look,
    Metrics,
    Night,
    SideCount,
    Snapshot,
    Split,
    TrainSpec,
    ValidationResult,
    Verdict,
)

START = datetime(2026, 3, 14, 2, 0, tzinfo=UTC)
CHAMPION = ChampionRef(
    version="7",
    candidate="c0" * 32,
    model="keras",
    model_sha256="ab" * 32,
    threshold=0.47,
    since=START - timedelta(days=9),
)


def interval(value: float, half: float) -> Interval:
    return Interval(value=value, low=max(0.0, value - half), high=min(1.0, value + half))


def predictions(cells: int = 1_000, patients: int = 20, seed: int = 3) -> pd.DataFrame:
    """Holdout cells of patients of unequal size; the champion is a little noisier than the challenger."""
    rng = np.random.default_rng(seed)
    owner = rng.choice(patients, size=cells, p=rng.dirichlet(np.full(patients, 2.0)))
    label = (rng.random(cells) < 0.5).astype(int)
    hard = rng.normal(0, 0.5, patients)[owner]

    def scored(noise: float) -> np.ndarray[Any, Any]:
        logit = (2 * label - 1) * 4.2 + hard + rng.normal(0, noise, cells)
        return np.asarray(1 / (1 + np.exp(-logit)))

    names = [f"C{100 + i}P{61 + i}" for i in owner]
    keys = [
        f"labeled/{'Parasitized' if y else 'Uninfected'}/{n}_cell_{i}.png"
        for i, (n, y) in enumerate(zip(names, label, strict=True))
    ]
    digests = [f"{i:064x}" for i in range(cells)]
    return pd.DataFrame(
        {
            "key": keys,
            "sha256": digests,
            "patient": names,
            "label": label,
            "challenger": scored(2.4),
            "champion": scored(2.8),
        }
    )


def metrics(table: pd.DataFrame, column: str, threshold: float) -> Metrics:
    """Counts from ``table``, with made-up interval widths."""
    y, called = table["label"] == 1, table[column] >= threshold
    tp, fn, fp, tn = (
        int((y & called).sum()),
        int((y & ~called).sum()),
        int((~y & called).sum()),
        int((~y & ~called).sum()),
    )
    sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
    return Metrics(
        cells=len(table),
        patients=table["patient"].nunique(),
        threshold=threshold,
        tp=tp,
        fp=fp,
        tn=tn,
        fn=fn,
        accuracy=interval((tp + tn) / len(table), 0.012),
        balanced_accuracy=interval((sensitivity + specificity) / 2, 0.012),
        auc=interval(0.986, 0.006),
        sensitivity=interval(sensitivity, 0.018),
        specificity=interval(specificity, 0.016),
        log_loss=0.1312,
    )


def some_metrics(balanced: float) -> Metrics:
    return Metrics(
        cells=980,
        patients=21,
        threshold=0.44,
        tp=460,
        fp=22,
        tn=468,
        fn=30,
        accuracy=interval(balanced, 0.013),
        balanced_accuracy=interval(balanced, 0.013),
        auc=interval(0.985, 0.006),
        sensitivity=interval(0.939, 0.02),
        specificity=interval(0.955, 0.015),
        log_loss=0.14,
    )


def candidate(model: str, name: str, balanced: float = 0.947) -> Candidate:
    epochs = 11 if model == "fastai" else 7
    history = tuple(
        EpochRecord(
            epoch=i,
            train_loss=0.1 + 0.5 * 0.62**i,
            valid_loss=0.13 + 0.4 * 0.55**i + 0.012 * max(0, i - epochs + 3),
            seconds=40.0,
        )
        for i in range(1, epochs + 1)
    )
    recipe = {"epochs": 14, "batch": 64, "learning_rate": 0.002, "patience": 3, "flips": True}
    return Candidate(
        id=name,
        spec=TrainSpec(model=model, split="5" * 64, side=64, seed=42, recipe=recipe, recipe_version=1),
        model_key=f"retraining/models/{name}.onnx",
        model_sha256="d" * 64,
        model_bytes=85_213_112,
        weights_key=f"retraining/models/{name}.safetensors",
        weights_sha256="e" * 64,
        threshold=0.44,
        validation=some_metrics(balanced),
        history=history,
        best_epoch=epochs - 3,
        stopped="early",
        train_cells=4_822,
        train_patients=98,
        train_patients_digest="f" * 64,
        versions={"torch": "2.15.0", "onnxruntime": "1.32.0"},
        device="CPU, 2 cores",
        seconds=431.2,
        peak_memory_mb=2_210.0,
        created_at=START + timedelta(minutes=9),
    )


def gates(*failed: str) -> tuple[Gate, ...]:
    """Conditions as the gate words them; those named in ``failed`` say so."""
    need = "at one-sided level 0.0021, above"
    rows: list[tuple[str, float, float | None, float | None, float, float | None, str]] = [
        ("holdout patients", 20, None, None, 8, None, "20 patients in the holdout, at least 8 needed"),
        ("superior balanced accuracy", 0.023, 0.0014, 0.041, 0.0, 0.0021,
         f"balanced accuracy differs by +2.30 points; at least +0.14 is sure {need} +0.00 is needed: better"),
        ("sensitivity not worse", 0.04, -0.006, 0.08, -0.01, 0.0021,
         f"sensitivity differs by +4.00 points; at least -0.60 is sure {need} -1.00 is needed: not worse"),
        ("specificity not worse", 0.006, -0.008, 0.02, -0.01, 0.0021,
         f"specificity differs by +0.60 points; at least -0.80 is sure {need} -1.00 is needed: not worse"),
        ("AUC floor", 0.986, 0.98, 0.992, 0.9, None, "AUC is 0.9860, at least 0.9000 needed"),
        ("sensitivity floor", 0.96, 0.942, 0.978, 0.8, None, "sensitivity is 0.9602, at least 0.8000 needed"),
    ]  # fmt: skip
    return tuple(
        Gate(name=name, value=value, low=low if low is None or name not in failed else bound - 0.01, high=high,
             bound=bound, level=level, passed=name not in failed,
             sentence=sentence if name not in failed else f"{name}: not shown tonight")
        for name, value, low, high, bound, level, sentence in rows
    )  # fmt: skip


def validation_result(*, valid: bool = True) -> ValidationResult:
    keys = ("labeled/Parasitized/C33P1thinF_IMG_20150619_cell_7.png", "labeled/Uninfected/C5_cell_1.png")
    return ValidationResult(
        id="2" * 64,
        snapshot="1" * 64,
        facts="retraining/facts.parquet",
        findings="retraining/findings.parquet",
        images=6_890,
        accepted=6_887,
        rejected=3,
        by_class={"Parasitized": 3_443, "Uninfected": 3_444},
        patients=139,
        without_patient=12,
        reasons={"truncated": 1, "too small": 2},
        examples=(
            Finding(reason="truncated", key=keys[0], detail="ends after 312 of 8,201 bytes"),
            *(Finding(reason="too small", key=key, detail="9 x 11 px, at least 16 expected") for key in keys),
        ),
        checks=(
            Check(
                name="class balance",
                expected="each class at least 20%",
                observed="50% Parasitized" if valid else "3% Parasitized",
                passed=valid,
                severity="invalid",
            ),
            Check(name="readable images", expected="at least 98%", observed="99.96%", passed=True, severity="invalid"),
            Check(
                name="brightness", expected="median within 0.45 to 0.75", observed="0.78", passed=False, severity="warn"
            ),
        ),
    )


def decision(verdict: Verdict, **changed: Any) -> Decision:
    fields: dict[str, Any] = {
        "id": "9" * 64,
        "verdict": verdict,
        "sentence": f"A sentence on a night that ended as {verdict.value}",
        "snapshot": "1" * 64,
        "validation": "2" * 64,
        "split": "5" * 64,
        "candidates": ("a" * 64, "b" * 64),
        "failed_trainings": {},
        "challenger": "a" * 64,
        "champion_before": CHAMPION,
        "champion_on_validation": some_metrics(0.938),
        "evaluation": "8" * 64,
        "gates": gates(),
        "further_patients": None,
        "synthetic": False,
        "generation": "g1",
        "decided_at": START + timedelta(minutes=21),
    }
    return Decision(**fields | changed)


def full_inputs(verdict: Verdict = Verdict.PROMOTED, **changed: Any) -> ReportInputs:
    """A night with two trained CNNs and a look at 1,000 holdout cells of 20 patients."""
    table = predictions()
    ours, theirs = metrics(table, "challenger", 0.44), metrics(table, "champion", CHAMPION.threshold)
    names = ("balanced_accuracy", "sensitivity", "specificity", "accuracy", "auc")
    gains = {name: getattr(ours, name).value - getattr(theirs, name).value for name in names}
    differences = {n: Interval(value=v, low=v - 0.021, high=v + 0.022, level=0.9958) for n, v in gains.items()}
    decided = decision(verdict, **changed)
    return ReportInputs(
        night=Night(
            id="0" * 64,
            verdict=verdict,
            sentence=decided.sentence,
            decision=decided.id,
            champion_before="7",
            champion_after="8" if verdict is Verdict.PROMOTED else "7",
            challenger="a" * 64,
            challenger_model="fastai",
            metrics={},
            images={},
            report=None,
            synthetic=decided.synthetic,
            started_at=START,
            seconds={
                "pull": 4.1,
                "validate": 11.9,
                "split": 0.4,
                "pack": 6.0,
                "train": 640.3,
                "evaluate": 14.8,
                "decide": 2.2,
            },
            finished_at=START + timedelta(minutes=22),
        ),
        decision=decided,
        snapshot=Snapshot(
            id="1" * 64,
            parent="7" * 64,
            table="retraining/snapshot.parquet",
            objects=6_890,
            bytes=88_412_331,
            by_class={"Parasitized": 3_445, "Uninfected": 3_445},
            patients=139,
            without_patient=12,
            new=212,
            gone=0,
            created_at=START,
        ),
        validation=validation_result(),
        split=Split(
            id="5" * 64,
            validation="2" * 64,
            generation="g1",
            table="retraining/split.parquet",
            without_patient=12,
            train=SideCount(patients=98, positive=2_410, negative=2_412),
            validation_side=SideCount(patients=21, positive=490, negative=490),
            holdout=SideCount(patients=20, positive=ours.tp + ours.fn, negative=ours.tn + ours.fp),
        ),
        candidates=(candidate("fastai", "a" * 64), candidate("keras", "b" * 64, 0.941)),
        evaluation=Evaluation(
            id="8" * 64,
            split="5" * 64,
            challenger="a" * 64,
            champion=CHAMPION,
            predictions="retraining/predictions.parquet",
            look=Look(
                generation="g1", number=3, challenger="a" * 64, champion="c0" * 32, spent=0.0021, looked_at=START
            ),
            challenger_metrics=ours,
            champion_metrics=theirs,
            differences=differences,
        ),
        predictions=table,
        champion_candidate=candidate("keras", "c0" * 32, 0.94),
        commands={
            "Roll back to version 7": 'retrain rollback 7 --why "..."',
            "Build this page again": f"retrain report {'9' * 12}",
        },
        settings={"RETRAIN_STORE": "s3://cells/night", "RETRAIN_SEED": "42", "RETRAIN_SECRET": "********"},
    )


def not_looked(verdict: Verdict, **changed: Any) -> ReportInputs:
    changed = {"evaluation": None, "gates": ()} | changed
    return replace(full_inputs(verdict, **changed), evaluation=None, predictions=None)


def first_champion(verdict: Verdict = Verdict.PROMOTED, failed: tuple[str, ...] = ()) -> ReportInputs:
    floors = tuple(g for g in gates(*failed) if g.level is None)
    made = full_inputs(verdict, champion_before=None, champion_on_validation=None, gates=floors)
    assert made.evaluation is not None
    assert made.predictions is not None
    alone = made.evaluation.model_copy(update={"champion": None, "champion_metrics": None, "differences": {}})
    table = made.predictions.assign(champion=float("nan"))
    night = made.night.model_copy(update={"champion_before": None})
    return replace(made, night=night, evaluation=alone, predictions=table, champion_candidate=None)


def bare(verdict: Verdict, **changed: Any) -> ReportInputs:
    """A night that trained nothing."""
    changed = {"candidates": (), "challenger": None, "champion_on_validation": None, "split": None} | changed
    made = not_looked(verdict, **changed)
    night = made.night.model_copy(update={"challenger": None, "challenger_model": None})
    return replace(made, night=night, candidates=(), split=None)


def invalid() -> ReportInputs:
    """Without a contest, a decision names no champion: the night does."""
    return replace(
        bare(Verdict.INVALID_DATA, champion_before=None),
        champion_candidate=None,
        validation=validation_result(valid=False),
    )


def nothing_new() -> ReportInputs:
    made = bare(Verdict.NOTHING_NEW)
    return replace(made, snapshot=made.snapshot.model_copy(update={"new": 0}))


def one_class() -> ReportInputs:
    """A holdout that has no infected cell."""
    made = full_inputs(Verdict.UNDECIDED, gates=gates("holdout patients"))
    assert made.evaluation is not None
    assert made.predictions is not None
    gone = {"tp": 0, "fn": 0, "sensitivity": None, "balanced_accuracy": None, "auc": None, "log_loss": None}
    ours = made.evaluation.challenger_metrics.model_copy(update=gone)
    theirs = made.evaluation.champion_metrics and made.evaluation.champion_metrics.model_copy(update=gone)
    looked = made.evaluation.model_copy(
        update={"challenger_metrics": ours, "champion_metrics": theirs, "differences": {}}
    )
    return replace(made, evaluation=looked, predictions=made.predictions[made.predictions["label"] == 0])


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
    page = render_report(replace(made, predictions=table, validation=found, settings=named, commands=named))
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
