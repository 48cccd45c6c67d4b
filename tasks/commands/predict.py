"""Predict: the champion's probability and call for image files, on the same code path as evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infra.registry.registry import Registry
from infra.scoring.model_file import ModelFile
from infra.settings.settings import Settings
from tasks.champion.history import current_champion
from tasks.champion.in_force import verified_file
from tasks.context import Context
from validation.errors import UsageError
from validation.images.decode import BadImage, decode, to_square
from validation.records import NEGATIVE, POSITIVE, ChampionRef
from validation.rules import DataRules

SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})


@dataclass(frozen=True)
class Prediction:
    """One image: its probability of Parasitized and the call at the champion's threshold, or its problem."""

    path: str
    probability: float | None
    call: str | None
    problem: str | None


def predict(settings: Settings, paths: Sequence[Path]) -> tuple[ChampionRef, list[Prediction]]:
    """Score image files, and all images in folders. A bad image does not stop the others.

    Raises:
        UsageError: when a path does not exist, or there is no champion yet.
        ChampionUnusable: when the champion is not what was judged.
    """
    files = [file for path in paths for file in _images(path)]
    registry = Registry(settings)
    champion = current_champion(registry)
    model = ModelFile(verified_file(Context.open(settings), registry, champion), sha256_expected=champion.model_sha256)
    return champion, [_predict(file, model, champion.threshold, settings.data) for file in files]


def _images(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        if not files:
            raise UsageError(f"no images ({', '.join(sorted(SUFFIXES))}) in the folder {path}")
        return files
    if not path.exists():
        raise UsageError(f"no file or folder at {path}")
    return [path]


def _predict(path: Path, model: ModelFile, threshold: float, rules: DataRules) -> Prediction:
    try:
        image = to_square(decode(path.read_bytes(), rules), model.side)
    except BadImage as bad:
        return Prediction(str(path), None, None, f"{bad.reason}: {bad.detail}")
    except OSError as error:
        return Prediction(str(path), None, None, f"cannot be read: {error.strerror}")
    # One at a time: the last bit may depend on the batch size, and an image's score must not depend on other images.
    probability = float(model.score(image[np.newaxis])[0])
    return Prediction(str(path), probability, POSITIVE if probability >= threshold else NEGATIVE, None)
