"""Reproduce: what is about to be champion gives, in a clean process, the very predictions that it was judged by."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from infra.registry.registry import Registry
from infra.scoring.isolated import FRAMEWORKS, rescore
from infra.scoring.model_file import ModelFile
from infra.store.records import table_bytes
from tasks.champion.history import history
from tasks.choose import prepare_contest
from tasks.context import Context
from tasks.decide import Evidence, decide
from tasks.evaluate import evaluate
from tasks.promote import promote
from tests import ROOT
from tests.builders import NOON, SIDE, Prepared, candidate_of, channel_member, channel_model, prepare, with_settings
from validation.digest import sha256
from validation.errors import ModelFileInvalid, NotReproduced
from validation.records import Candidate, Decision, Evaluation, Start, Verdict

pytestmark = pytest.mark.thorough

MODEL = channel_model()


@pytest.fixture
def challenger(context: Context, prepared: Prepared) -> Candidate:
    return candidate_of(context, prepared, channel_member())


@pytest.fixture
def decision(context: Context, prepared: Prepared, challenger: Candidate, registry: Registry) -> Decision:
    """A first champion's promotion, decided by the night's own stages."""
    return first_decision(context, prepared, challenger, registry)


def first_decision(context: Context, prepared: Prepared, challenger: Candidate, registry: Registry) -> Decision:
    start = Start(id="night", champion=None, started_at=NOON)
    contest = prepare_contest(context, [challenger], start, registry, prepared.split, prepared.pack)
    evaluation = evaluate(context, contest, prepared.split, prepared.pack, registry)
    assert isinstance(evaluation, Evaluation)
    evidence = Evidence(
        prepared.snapshot, prepared.validation, prepared.split, (challenger,), {}, contest, evaluation
    )  # fmt: skip
    made = decide(context, evidence)
    assert made.verdict is Verdict.PROMOTED
    return made


def record_other(context: Context, decision: Decision, cell: int, value: Callable[[np.float32], np.float32]) -> None:
    """Let the record of the evaluation differ, for one cell, from what the model says."""
    evaluation = context.records.load(Evaluation, decision.evaluation or "")
    table = context.records.load_table(evaluation.predictions)
    recorded = table["challenger"].to_numpy(np.float32, copy=True)
    recorded[cell] = value(recorded[cell])
    context.store.put(evaluation.predictions, table_bytes(table.assign(challenger=recorded.astype(np.float64))))


def test_a_promotion_scores_all_judged_cells_again_and_records_it(
    context: Context, registry: Registry, decision: Decision, challenger: Candidate, prepared: Prepared
) -> None:
    promote(context, decision, challenger, registry)
    (entry,) = history(context)
    cells = prepared.split.judging.cells
    assert entry.checked.startswith(f"{cells} cells scored again in a clean process: equal")
    assert cells > 20


def test_one_other_bit_keeps_the_champion(
    context: Context, registry: Registry, decision: Decision, challenger: Candidate
) -> None:
    record_other(context, decision, 3, lambda value: np.float32(np.nextafter(value, np.float32(0.5))))
    with pytest.raises(NotReproduced, match=r"does not give the predictions it was judged by: 1 of \d+") as caught:
        promote(context, decision, challenger, registry)
    assert "RETRAIN_PROMOTION__TOLERANCE" in caught.value.hint
    assert (registry.champion(), history(context)) == (None, [])
    # Another kind of processor can be allowed, by name and by how much.
    allowed = with_settings(context, promotion={"tolerance": 1e-6})
    champion = promote(allowed, decision, challenger, registry)
    assert champion == registry.champion()
    assert "1 differ by at most" in history(context)[0].checked


@pytest.mark.usefixtures("evidence_believed")
def test_a_tolerance_never_covers_another_call(
    context: Context, registry: Registry, decision: Decision, challenger: Candidate
) -> None:
    scores: list[float] = []

    def just_below(value: np.float32) -> np.float32:
        scores.append(float(value))
        return np.float32(np.nextafter(value, np.float32(0)))

    record_other(context, decision, 3, just_below)
    at_threshold = challenger.model_copy(update={"threshold": scores[0]})
    allowed = with_settings(context, promotion={"tolerance": 0.01})
    with pytest.raises(NotReproduced, match="1 of"):
        promote(allowed, decision, at_threshold, registry)
    assert registry.champion() is None


def test_a_night_does_not_promote_what_it_cannot_compare(
    context: Context, registry: Registry, decision: Decision, challenger: Candidate
) -> None:
    evaluation = context.records.load(Evaluation, decision.evaluation or "")
    del context.store.objects[evaluation.predictions]  # type: ignore[attr-defined]
    with pytest.raises(NotReproduced, match="cannot be compared"):
        promote(context, decision, challenger, registry)
    assert registry.champion() is None


@pytest.mark.usefixtures("tried_here")
def test_a_cell_that_was_accepted_with_a_warning_can_be_promoted(
    context: Context, registry: Registry, challenger: Candidate
) -> None:
    """What was accepted and packed under ``data.severities`` is scored again before promotion by the same limits."""
    lenient = {"min_pixels": 19, "max_aspect": 1.05, "severities": {"too small": "warn", "odd aspect": "warn"}}
    context = with_settings(context, data=lenient)  # every cell is 18 x 20 pixels
    prepared = prepare(context)
    warned = prepared.validation.reasons
    assert warned["too small"] == warned["odd aspect"] == prepared.validation.accepted > 0
    candidate = candidate_of(context, prepared, channel_member())
    promoted = first_decision(context, prepared, candidate, registry)
    champion = promote(context, promoted, candidate, registry)
    assert champion == registry.champion()
    assert "equal to the recorded predictions" in history(context)[0].checked


def test_the_process_is_clean() -> None:
    """Nothing but numpy, onnxruntime and this project's own scoring, whatever is imported on the way."""
    code = (
        "import sys, infra.scoring.isolated, numpy, onnxruntime\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(shown.stdout.split())
    assert {"numpy", "onnxruntime", "infra", "validation"} <= loaded
    assert not loaded & {*FRAMEWORKS, "boto3", "pydantic", "tasks", "flows"}


def test_a_process_that_is_not_clean_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # An environment may do this to every Python process.
    (tmp_path / "keras.py").write_text("")
    (tmp_path / "sitecustomize.py").write_text("import keras\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    with pytest.raises(ModelFileInvalid, match=r"not a clean process: \['keras'\]"):
        rescore(MODEL, np.zeros((1, SIDE, SIDE, 3), np.uint8), sha256_expected=sha256(MODEL))


def test_it_gives_what_the_file_gives() -> None:
    images = np.random.default_rng(1).integers(0, 256, (130, SIDE, SIDE, 3)).astype(np.uint8)
    scores = rescore(MODEL, images, sha256_expected=sha256(MODEL))
    np.testing.assert_array_equal(scores, ModelFile(MODEL).score(images))
    assert scores.dtype == np.float32


@pytest.mark.parametrize(
    ("model", "expected", "words"),
    [
        (MODEL, "0" * 64, "recorded is 0000"),
        (b"no model", sha256(b"no model"), "not a usable ONNX model"),
        (channel_model(side=8), sha256(channel_model(side=8)), r"expected uint8 \[n, 8, 8, 3\]"),
    ],
)
def test_a_file_that_is_not_right_is_refused_with_the_reason(model: bytes, expected: str, words: str) -> None:
    with pytest.raises(ModelFileInvalid, match=words):
        rescore(model, np.zeros((1, SIDE, SIDE, 3), np.uint8), sha256_expected=expected)


def test_a_process_that_dies_says_what_it_last_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'infra.scoring.isolated' in sys.orig_argv:\n"
        "    os.write(2, b'out of luck')\n    os._exit(7)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    with pytest.raises(ModelFileInvalid, match="ended with code 7: out of luck"):
        rescore(MODEL, np.zeros((1, SIDE, SIDE, 3), np.uint8), sha256_expected=sha256(MODEL))


def test_the_program_answers_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(MODEL)
    np.save(tmp_path / "images.npy", np.zeros((2, SIDE, SIDE, 3), np.uint8))
    done = subprocess.run(
        [sys.executable, "-m", "infra.scoring.isolated", str(tmp_path), sha256(MODEL)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == {"cells": 2}
