"""Nights to report on: one of each kind, from records that are made up but fit each other."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from tasks.reporting.inputs import ReportInputs
from tasks.reporting.pictures.choose import choose, choose_for_heat
from tasks.reporting.pictures.gather import COLUMNS, encode
from validation.patients import FOLDS
from validation.records import (
    Candidate,
    CellCount,
    ChampionRef,
    Check,
    Decision,
    EpochRecord,
    Evaluation,
    Exhibits,
    FieldMonth,
    FieldReport,
    Finding,
    Gate,
    Interval,
    Look,
    Member,
    Metrics,
    Night,
    PastNight,
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


@cache
def predictions(cells: int = 1_000, patients: int = 20, seed: int = 3) -> pd.DataFrame:
    """Judged cells of patients of unequal size; the champion is a little noisier than the challenger."""
    rng = np.random.default_rng(seed)
    owner = rng.choice(patients, size=cells, p=rng.dirichlet(np.full(patients, 2.0)))
    label = (rng.random(cells) < 0.5).astype(int)
    hard = rng.normal(0, 0.5, patients)[owner]

    def scored(noise: float) -> np.ndarray[Any, Any]:
        logit = (2 * label - 1) * 4.2 + hard + rng.normal(0, noise, cells)
        return np.asarray(1 / (1 + np.exp(-logit)))

    columns = {"challenger": scored(2.4), "champion": scored(2.8), "reference": scored(2.9), "other": scored(2.6)}
    for scores in columns.values():
        # Filed under the wrong class, according to the models.
        scores[:3] = np.where(label[:3] == 1, 0.02, 0.98)
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
            "fold": owner % FOLDS,
            "label": label,
            **columns,
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


def member(model: str, fold: int) -> Member:
    """Each member ended at an epoch of its own."""
    epochs = (11 if model == "fastai" else 7) - fold
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
    return Member(
        id=f"{model} {fold}",
        spec=TrainSpec(model=model, member=fold, split="5" * 64, side=64, seed=42, recipe=recipe, recipe_version=1),
        model_key=f"retraining/members/{model}{fold}/member.onnx",
        model_sha256=f"{fold}" * 64,
        model_bytes=85_213_112,
        weights_key=f"retraining/members/{model}{fold}/weights.safetensors",
        weights_sha256="e" * 64,
        history=history,
        best_epoch=epochs - 3,
        stopped="early",
        train_cells=4_822 + fold,
        train_patients=98,
        tuning_patients=14,
        versions={"torch": "2.15.0", "onnxruntime": "1.32.0"},
        device="CPU, 2 cores",
        seconds=131.2,
        peak_memory_mb=2_210.0 + fold,
        created_at=START + timedelta(minutes=9),
    )


def candidate(model: str, name: str, balanced: float = 0.947) -> Candidate:
    return Candidate(
        id=name,
        model=model,
        split="5" * 64,
        side=64,
        members=tuple(member(model, fold) for fold in range(FOLDS)),
        model_key=f"retraining/candidates/{name}/model.onnx",
        model_sha256="d" * 64,
        model_bytes=426_065_560,
        threshold=0.44,
        tuning=some_metrics(balanced),
        train_patients=139,
        train_patients_digest="f" * 64,
        created_at=START + timedelta(minutes=9),
    )


def gates(*failed: str) -> tuple[Gate, ...]:
    """Conditions of a promotion; those named in ``failed`` miss their bound."""
    rows: list[tuple[str, float, float | None, float | None, float, float | None]] = [
        ("judging patients", 20, None, None, 8, None),
        ("superior balanced accuracy", 0.023, 0.0014, 0.041, 0.0, 0.0021),
        ("sensitivity not worse", 0.04, -0.006, 0.08, -0.01, 0.0021),
        ("specificity not worse", 0.006, -0.008, 0.02, -0.01, 0.0021),
        ("AUC floor", 0.986, 0.98, 0.992, 0.9, None),
        ("sensitivity floor", 0.96, 0.942, 0.978, 0.8, None),
    ]

    def gate(name: str, value: float, low: float | None, high: float | None, bound: float, level: float | None) -> Gate:
        if name in failed:
            value = value if level is not None else 3 if low is None else bound - 0.05
            low = None if low is None else bound - 0.01 if level is not None else value - 0.01
        return Gate(
            name=name, value=value, low=low, high=high, bound=bound, level=level, passed=name not in failed,
            sentence=f"{name}: the words it was stored with",
        )  # fmt: skip

    return tuple(gate(*row) for row in rows)


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
        "id": "94c7d03b1f6e28a5d9410c3e",
        "verdict": verdict,
        "sentence": f"A sentence on a night that ended as {verdict.value}",
        "snapshot": "1" * 64,
        "validation": "2" * 64,
        "split": "5" * 64,
        "candidates": ("a" * 64, "b" * 64),
        "failed_trainings": {},
        "challenger": "a" * 64,
        "champion_before": CHAMPION,
        "tuning": {"challenger": some_metrics(0.947), "champion": some_metrics(0.938)},
        "evaluation": "8" * 64,
        "gates": gates(),
        "further_patients": None,
        "synthetic": False,
        "decided_at": START + timedelta(minutes=21),
    }
    return Decision(**fields | changed)


def facts(table: pd.DataFrame) -> pd.DataFrame:
    """Every patient's cells about as bright as one another."""
    codes, _ = pd.factorize(table["patient"], sort=True)
    return pd.DataFrame({"key": table["key"], "brightness": 140.0 + 3 * codes})


@cache
def picture(seed: int, width: int = 96, height: int = 96) -> bytes:
    """A disc on black, as a cell is drawn in a report."""
    rng = np.random.default_rng(seed)
    down, across = np.mgrid[:height, :width]
    disc = (down - height / 2) ** 2 + (across - width / 2) ** 2 < (0.42 * min(width, height)) ** 2
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[disc] = rng.integers(120, 220, 3)
    return encode(pixels)


def cells(table: pd.DataFrame) -> pd.DataFrame:
    """Every gallery, with pictures that are made up."""
    chosen, _ = choose(table, {"challenger": 0.44, "champion": CHAMPION.threshold, "other": 0.41}, "sample")
    digests = {sha256: picture(number) for number, sha256 in enumerate(chosen["sha256"].unique())}
    chosen = chosen.assign(note="", side=96, image=chosen["sha256"].map(digests))
    heat = choose_for_heat(chosen).assign(image=picture(1, 228, 112))
    new = chosen.tail(8).assign(gallery="new", challenger=np.nan, champion=np.nan, other=np.nan)
    rows = [
        {"gallery": "batch", "label": -1, "note": "fastai", "image": picture(2, 256, 128)},
        {"gallery": "batch", "label": -1, "note": "keras", "image": picture(3, 256, 128)},
        {"gallery": "quarantined", "key": "labeled/Uninfected/C1P1thin_cell_8.png", "label": -1,
         "note": "wrong mode: mode L, RGB expected", "image": picture(4)},
        {"gallery": "quarantined", "key": "labeled/Parasitized/C33P1thinF_IMG_20150619_cell_7.png", "label": -1,
         "note": "truncated: ends after 312 of 8,201 bytes", "image": b""},
    ]  # fmt: skip
    whole = pd.concat([chosen, heat, new, pd.DataFrame(rows)], ignore_index=True)
    return whole.reindex(columns=COLUMNS).fillna({"key": "", "sha256": "", "patient": "", "note": "", "side": 96})


def exhibits(id_: str) -> Exhibits:
    """Two earlier looks, the first of which made a champion."""
    looks = tuple(
        Look(
            number=number, challenger=f"{number}" * 64, champion="ab" * 32 if number > 1 else None,
            spent=0.0021 if number > 1 else 0.0, looked_at=START - timedelta(days=9 - 4 * number),
        )
        for number in (1, 2, 3)
    )  # fmt: skip
    past = tuple(
        PastNight(
            decision=f"{number}" * 24,
            at=START - timedelta(days=10 - 3 * number),
            verdict=Verdict.PROMOTED if number == 1 else Verdict.KEPT,
            version="7",
            model="keras",
            balanced_accuracy=interval(0.938 + 0.002 * number, 0.014),
            sensitivity=interval(0.93, 0.02),
            specificity=None if number == 2 else interval(0.95, 0.02),
        )
        for number in (1, 2)
    )
    return Exhibits(
        id=id_, cells="retraining/reports/x.cells.parquet", counts={"mistakes": 70, "new": 212, "quarantined": 2},
        ledger=looks, looks=24, error_budget=0.05, past=past, last_good="1" * 24,
        left_out=("Heat maps of 2 further cells: the model is too slow here.",),
    )  # fmt: skip


def full_inputs(verdict: Verdict = Verdict.PROMOTED, **changed: Any) -> ReportInputs:
    """A night with two trained CNNs and a look at 1,000 cells of 20 patients."""
    table = predictions()
    challenger, champion = metrics(table, "challenger", 0.44), metrics(table, "champion", CHAMPION.threshold)
    other = metrics(table, "other", 0.41)
    names = ("balanced_accuracy", "sensitivity", "specificity", "accuracy", "auc")
    gains = {name: getattr(challenger, name).value - getattr(champion, name).value for name in names}
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
            seconds={"pull": 4.1, "validate": 11.9, "train fastai": 431.2, "evaluate": 14.8, "decide": 2.2},
            memory_mb={"pull": 310.4, "validate": 540.0, "train fastai": 560.2, "evaluate": 1_204.8},
            revision="0123456789abcdef0123456789abcdef01234567",
            hardware="A Processor, 2 cores, 24 GiB memory, Linux",
            versions={"python": "3.11.7", "numpy": "2.4.6"},
            settings={"RETRAIN_STORE": "s3://cells/night", "RETRAIN_SEED": "42", "RETRAIN_SECRET": "********"},
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
            table="retraining/split.parquet",
            without_patient=12,
            folds=tuple(CellCount(patients=4, positive=90 + fold, negative=110 - fold) for fold in range(FOLDS)),
        ),
        candidates=(candidate("fastai", "a" * 64), candidate("keras", "b" * 64, 0.941)),
        evaluation=Evaluation(
            id="8" * 64,
            split="5" * 64,
            challenger="a" * 64,
            challenger_sha256="d" * 64,
            challenger_threshold=0.44,
            champion=CHAMPION,
            look=Look(number=3, challenger="d" * 64, champion="ab" * 32, spent=0.0021, looked_at=START),
            predictions="retraining/predictions.parquet",
            judged="9" * 64,
            counts={},
            challenger_metrics=challenger,
            champion_metrics=champion,
            differences=differences,
            other="b" * 64,
            other_metrics=other,
            milliseconds={"challenger": 3.1, "champion": 1.2, "other": 1.3},
        ),
        predictions=table,
        facts=facts(table),
        exhibits=exhibits(decided.id),
        cells=cells(table),
        champion_candidate=candidate("keras", "c0" * 32, 0.94),
    )


def field_report(*worse: str) -> FieldReport:
    """Version 7 on patients of two months since its promotion."""
    return FieldReport(
        version="7",
        patients=45,
        cells=2_310,
        promised={name: interval(0.93, 0.015) for name in ("sensitivity", "specificity", "balanced_accuracy")},
        found={name: interval(0.881, 0.02) for name in ("sensitivity", "specificity", "balanced_accuracy")},
        worse=worse,
        months=(
            FieldMonth(month="2026-02", patients=31, sensitivity=0.912, specificity=0.951),
            FieldMonth(month="2026-03", patients=14, sensitivity=None, specificity=0.944),
        ),
    )


def in_the_field(*worse: str) -> ReportInputs:
    """A night whose new patients were scored by the champion."""
    made = full_inputs(Verdict.KEPT, gates=gates("superior balanced accuracy"))
    return replace(made, night=made.night.model_copy(update={"field": field_report(*worse)}))


def not_looked(verdict: Verdict, **changed: Any) -> ReportInputs:
    changed = {"evaluation": None, "gates": ()} | changed
    made = full_inputs(verdict, **changed)
    assert made.cells is not None
    unscored = made.cells[made.cells["gallery"].isin(["new", "batch", "quarantined"])]
    return replace(made, evaluation=None, predictions=None, facts=None, cells=unscored)


NO_LOOK = "it could not pass even if it were right wherever the two differ"


def best_case(**changed: Any) -> ReportInputs:
    """A challenger that earned a look which nothing could have passed."""
    kinds: list[tuple[str, float, float]] = [
        ("judging patients", 20, 8),
        ("patients with a disagreement", 5, 9),
        ("effective patients, sensitivity not worse", 6.9, 8.2),
        ("effective patients, specificity not worse than the reference", 9.4, 8.2),
    ]
    conditions = tuple(
        Gate(name=name, value=value, low=None, high=None, bound=bound, level=None, passed=value > bound, sentence="")
        for name, value, bound in kinds
    )
    return not_looked(Verdict.UNDECIDED, gates=conditions, not_looked=NO_LOOK, further_patients=17, **changed)


def first_champion(verdict: Verdict = Verdict.PROMOTED, failed: tuple[str, ...] = ()) -> ReportInputs:
    floors = tuple(g for g in gates(*failed) if g.level is None)
    made = full_inputs(verdict, champion_before=None, tuning={}, gates=floors)
    assert made.evaluation is not None
    assert made.predictions is not None
    assert made.cells is not None
    alone = made.evaluation.model_copy(update={"champion": None, "champion_metrics": None, "differences": {}})
    unrivalled = made.cells[~made.cells["gallery"].isin(["gained", "lost"])].assign(champion=float("nan"))
    table = made.predictions.assign(champion=float("nan"))
    night = made.night.model_copy(update={"champion_before": None})
    return replace(
        made, night=night, evaluation=alone, predictions=table, champion_candidate=None, exhibits=None, cells=unrivalled
    )


def bare(verdict: Verdict, **changed: Any) -> ReportInputs:
    """A night that trained nothing."""
    changed = {"candidates": (), "challenger": None, "tuning": {}, "split": None} | changed
    made = not_looked(verdict, **changed)
    night = made.night.model_copy(update={"challenger": None, "challenger_model": None})
    return replace(made, night=night, candidates=(), split=None, exhibits=None, cells=None)


def invalid() -> ReportInputs:
    """Without a contest, a decision names no champion: the night does."""
    shown = full_inputs().cells
    assert shown is not None
    return replace(
        bare(Verdict.INVALID_DATA, champion_before=None),
        champion_candidate=None,
        cells=shown[shown["gallery"].isin(["new", "quarantined"])],
        validation=validation_result(valid=False),
    )


def unusable() -> ReportInputs:
    """A champion that does not load."""
    problem = "no ONNX model at all"
    return not_looked(Verdict.CHAMPION_UNUSABLE, champion_problem=problem, tuning={})


def nothing_new() -> ReportInputs:
    made = bare(Verdict.NOTHING_NEW)
    return replace(made, snapshot=made.snapshot.model_copy(update={"new": 0}))


def one_class() -> ReportInputs:
    """No judging patient has an infected cell."""
    made = full_inputs(Verdict.UNDECIDED, gates=gates("judging patients"))
    assert made.evaluation is not None
    assert made.predictions is not None
    gone = {"tp": 0, "fn": 0, "sensitivity": None, "balanced_accuracy": None, "auc": None, "log_loss": None}
    challenger = made.evaluation.challenger_metrics.model_copy(update=gone)
    champion = made.evaluation.champion_metrics and made.evaluation.champion_metrics.model_copy(update=gone)
    other = made.evaluation.other_metrics and made.evaluation.other_metrics.model_copy(update=gone)
    looked = made.evaluation.model_copy(
        update={
            "challenger_metrics": challenger,
            "champion_metrics": champion,
            "other_metrics": other,
            "differences": {},
        }
    )
    rows = made.predictions[made.predictions["label"] == 0].reset_index(drop=True)
    return replace(made, evaluation=looked, predictions=rows, cells=cells(rows))
