"""Predict: the champion's call for image files, on the code path of evaluation."""

from __future__ import annotations

import csv
import io
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flows.cli import display
from infra.registry.registry import Registry
from infra.scoring.model_file import ModelFile
from infra.settings.settings import Settings
from infra.store.keys import SYNTHETIC_MARK
from tasks.champion.history import current_champion
from tasks.commands.predict import PatientSummary, predict
from tasks.context import Context
from tests import ROOT
from tests.builders import (
    SIDE,
    candidate_of,
    channel_member,
    channel_model,
    folder_context,
    made_up_candidate,
    made_up_decision,
    plain_cells,
    png,
    prepare,
    registry_in,
    small_settings,
)
from validation.errors import UsageError
from validation.images.decode import decode, to_square
from validation.records import NEGATIVE, POSITIVE
from validation.rules import DataRules

pytestmark = pytest.mark.thorough

MODEL = channel_model()
CELLS = {Path(key).name: (Path(key).parent.name, data) for key, data in plain_cells(3, 4).items()}


@pytest.fixture
def settings(home: Path) -> Settings:
    return small_settings(home)


@pytest.fixture
def registry(home: Path, empty_registry: Path) -> Registry:
    registry = registry_in(home, empty_registry)
    registry.set_champion(registry.register(made_up_candidate(MODEL), MODEL, made_up_decision()).version)
    return registry


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "cells"
    (path / "deeper").mkdir(parents=True)
    for number, (name, (_, data)) in enumerate(CELLS.items()):
        (path / "deeper" / name if number % 2 else path / name).write_bytes(data)
    return path


def test_every_prediction_is_that_of_the_model_file(registry: Registry, settings: Settings, folder: Path) -> None:
    result = predict(settings, [folder])
    champion, answers = result.champion, result.predictions
    assert champion == registry.champion()
    assert len(answers) == len(CELLS)
    model = ModelFile(MODEL)
    for answer in answers:
        label, data = CELLS[Path(answer.path).name]
        score = float(model.score(to_square(decode(data, settings.data), SIDE)[np.newaxis])[0])
        assert answer.probability == score
        assert answer.call == (POSITIVE if score >= champion.threshold else NEGATIVE) == label
        assert answer.problem is None


def test_a_prediction_does_not_depend_on_other_images(registry: Registry, settings: Settings, folder: Path) -> None:
    del registry
    together = predict(settings, [folder]).predictions
    for answer in together[:3]:
        assert predict(settings, [Path(answer.path)]).predictions == [answer]


def test_a_bad_image_does_not_stop_the_others(registry: Registry, settings: Settings, folder: Path) -> None:
    del registry
    (folder / "half.PNG").write_bytes(png(np.full((40, 40, 3), 9))[:60])
    (folder / "empty.jpeg").write_bytes(b"")
    (folder / "notes.txt").write_bytes(b"not asked for")
    answers = predict(settings, [folder, folder / "notes.txt"]).predictions
    bad = {Path(answer.path).name: answer for answer in answers if answer.problem}
    assert set(bad) == {"half.PNG", "empty.jpeg", "notes.txt"}
    assert bad["half.PNG"].problem.startswith("truncated: ")  # type: ignore[union-attr]
    assert bad["notes.txt"].problem.startswith("not an image: ")  # type: ignore[union-attr]
    assert all((answer.probability, answer.call) == (None, None) for answer in bad.values())
    assert len(answers) == len(CELLS) + 3


def test_a_link_out_of_the_folder_and_a_pipe_are_named_and_not_read(
    registry: Registry, settings: Settings, folder: Path, tmp_path: Path
) -> None:
    del registry
    (tmp_path / "private.png").write_bytes(next(iter(CELLS.values()))[1])
    (folder / "link.png").symlink_to(tmp_path / "private.png")
    os.mkfifo(folder / "pipe.png")
    bad = {Path(row.path).name: row.problem for row in predict(settings, [folder]).predictions if row.problem}
    assert bad == {
        "link.png": "cannot be read: a link out of the folder",
        "pipe.png": "cannot be read: not a plain file",
    }


def test_a_cell_is_judged_by_the_champions_training_cells(home: Path, empty_registry: Path, tmp_path: Path) -> None:
    # As real cells are: on black, away from the edges, of several sizes.
    cells = {
        key: np.pad(decode(data, DataRules())[number % 5 :], ((8, 8), (8, 8), (0, 0)))
        for number, (key, data) in enumerate(plain_cells().items())
    }
    context = folder_context(home, {key: png(pixels) for key, pixels in cells.items()})
    candidate = candidate_of(context, prepare(context), channel_member())
    registry = registry_in(home, empty_registry)
    model = context.store.get(candidate.model_key)
    registry.set_champion(registry.register(candidate, model, made_up_decision()).version)
    pixels = list(cells.values())[2]
    files = {
        "C1P9ThinF_a.png": png(pixels),
        "C1P9ThinF_b.png": png(np.where(pixels > 0, 255 - pixels // 4, 0)),
        "C1P9ThinF_c.png": png(np.zeros((20, 18, 3))),
        "unnamed.png": png(np.kron(pixels, np.ones((9, 9, 1), np.uint8))),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    result = predict(context.settings, [tmp_path / name for name in files])
    good, pale, black, large = result.predictions
    assert result.compared_with.startswith("the 360 training images of version 1")
    assert (good.doubts, good.problem, good.patient) == ((), None, "C1P9")
    assert "stain out of range" in [doubt.partition(":")[0] for doubt in pale.doubts]
    assert "unusual size" in [doubt.partition(":")[0] for doubt in large.doubts]
    # What a night leaves out is not called Uninfected either.
    assert (black.call, black.problem) == (None, "no cell: 0.0% of the picture is not black, at least 2.0% expected")
    assert result.patients == [
        PatientSummary(None, 1, *((1, 0) if large.call == POSITIVE else (0, 1)), 1, 0),
        PatientSummary("C1P9", 3, 2, 0, 1, 1),
    ]
    assert not result.synthetic
    context.store.put(SYNTHETIC_MARK, b"{}")
    assert predict(context.settings, [tmp_path / "unnamed.png"]).synthetic


def test_csv_and_the_warning_of_synthetic_cells(
    registry: Registry,
    settings: Settings,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    del registry
    (folder / "C9P9thin,.png").write_bytes(b"")
    result = predict(settings, [folder])
    display.predictions_csv(replace(result, synthetic=True))
    shown = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(shown.out)))
    assert [row["path"] for row in rows] == [answer.path for answer in result.predictions]
    assert [float(row["probability"] or -1) for row in rows][1] == result.predictions[1].probability
    assert next(row for row in rows if row["problem"]) == {
        **{"path": str(folder / "C9P9thin,.png"), "patient": "C9P9", "probability": "", "call": "", "doubts": ""},
        "problem": "not an image: an empty file",
    }
    assert "SYNTHETIC" in shown.err
    display.predictions(result)
    shown = capsys.readouterr()
    assert "patient C9P9: 0 Parasitized, 0 Uninfected, 1 not scored" in shown.out
    assert "SYNTHETIC" not in shown.err


def test_the_serving_snippet_of_the_docs_agrees(registry: Registry, settings: Settings, folder: Path) -> None:
    answers = predict(settings, [folder]).predictions
    snippet = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "how-to" / "serving.md").read_text(), re.DOTALL)
    assert snippet is not None
    arguments = [registry.uri, *(answer.path for answer in answers)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", snippet[1], *arguments],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [f"{answer.path} {answer.probability} {answer.call}" for answer in answers]


def test_a_missing_path_is_a_usage_error(registry: Registry, settings: Settings, tmp_path: Path) -> None:
    del registry
    with pytest.raises(UsageError, match=r"no file or folder at .*none\.png"):
        predict(settings, [tmp_path / "none.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no images"):
        predict(settings, [tmp_path / "empty"])


def test_without_a_champion_it_says_what_to_do(
    home: Path, empty_registry: Path, settings: Settings, folder: Path
) -> None:
    registry = registry_in(home, empty_registry)
    with pytest.raises(UsageError, match="no champion") as caught:
        predict(settings, [folder])
    assert "retrain run" in caught.value.hint
    registry.uri = "postgresql://me:s3cret@db/mlflow"
    with pytest.raises(UsageError) as caught:
        current_champion(Context.open(settings), registry)
    assert "s3cret" not in str(caught.value)
