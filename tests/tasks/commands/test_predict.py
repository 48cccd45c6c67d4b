"""Predict: the champion's call for image files, on the code path of evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from infra.registry.registry import Registry
from infra.scoring.model_file import ModelFile
from infra.settings.settings import Settings
from tasks.champion.history import current_champion
from tasks.commands.predict import predict
from tests.builders import (
    SIDE,
    channel_model,
    made_up_candidate,
    made_up_decision,
    plain_cells,
    png,
    registry_in,
    small_settings,
)
from validation.errors import UsageError
from validation.images.decode import decode, to_square
from validation.records import NEGATIVE, POSITIVE

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
    champion, answers = predict(settings, [folder])
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
    _, together = predict(settings, [folder])
    for answer in together[:3]:
        assert predict(settings, [Path(answer.path)])[1] == [answer]


def test_a_bad_image_does_not_stop_the_others(registry: Registry, settings: Settings, folder: Path) -> None:
    del registry
    (folder / "half.PNG").write_bytes(png(np.full((40, 40, 3), 9))[:60])
    (folder / "empty.jpeg").write_bytes(b"")
    (folder / "notes.txt").write_bytes(b"not asked for")
    _, answers = predict(settings, [folder, folder / "notes.txt"])
    bad = {Path(answer.path).name: answer for answer in answers if answer.problem}
    assert set(bad) == {"half.PNG", "empty.jpeg", "notes.txt"}
    assert bad["half.PNG"].problem.startswith("truncated: ")  # type: ignore[union-attr]
    assert bad["notes.txt"].problem.startswith("not an image: ")  # type: ignore[union-attr]
    assert all((answer.probability, answer.call) == (None, None) for answer in bad.values())
    assert len(answers) == len(CELLS) + 3


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
        current_champion(registry)
    assert "s3cret" not in str(caught.value)
