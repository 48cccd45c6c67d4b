"""Predict: the champion's probability and call for image files, on the same code path as evaluation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from infra.registry.registry import Registry
from infra.scoring.model_file import ModelFile
from infra.settings.settings import Settings
from infra.store.keys import SYNTHETIC_MARK
from tasks.cells.reference import reference_of
from tasks.champion.history import current_champion
from tasks.champion.in_force import verified_file
from tasks.context import Context
from tasks.intake.sources import SourceFile, folder_files, plain_file
from validation.errors import DataInvalid, UsageError
from validation.findings import with_severities
from validation.images.decode import BadImage, read, to_square
from validation.images.facts import judge_image, learn_bounds
from validation.images.measure import measure
from validation.patients import patient_of
from validation.records import NEGATIVE, POSITIVE, ChampionRef, Decision, Finding
from validation.rules import DataRules

SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})


@dataclass(frozen=True)
class Prediction:
    """One image: its probability of Parasitized and the call at the champion's threshold, or its problem.

    ``doubts`` are the findings that training cells get too; a call with a doubt is not to be trusted.
    """

    path: str
    patient: str | None
    probability: float | None
    call: str | None
    doubts: tuple[str, ...]
    problem: str | None


@dataclass(frozen=True)
class PatientSummary:
    """The calls of one patient's images; ``patient`` is None for those whose name has none."""

    patient: str | None
    images: int
    parasitized: int
    uninfected: int
    doubtful: int
    not_scored: int


@dataclass(frozen=True)
class Predictions:
    """Predictions by one champion; ``compared_with`` says which cells focus, stain and size were compared with."""

    champion: ChampionRef
    synthetic: bool
    compared_with: str
    predictions: list[Prediction]
    patients: list[PatientSummary]


def predict(settings: Settings, paths: Sequence[Path]) -> Predictions:
    """Score image files, and all images in folders. A bad image does not stop the others.

    Raises:
        UsageError: when a path does not exist, or there is no champion yet.
        ChampionUnusable: when the champion is not what was judged.
    """
    files = [file for path in paths for file in _images(path)]
    context, registry = Context.open(settings), Registry(settings)
    champion = current_champion(context, registry)
    model = ModelFile(verified_file(context, registry, champion), sha256_expected=champion.model_sha256)
    reference = reference_of(context, champion)
    bounds = {} if reference.facts is None else learn_bounds(reference.facts)
    compared = "nothing: its training cells' measurements are gone" if reference.facts is None else reference.name
    predictions = [_predict(file, model, champion.threshold, settings.data, bounds) for file in files]
    decision = context.records.find(Decision, registry.decision_of(champion.version) or "none")
    synthetic = context.store.exists(SYNTHETIC_MARK) or (decision is not None and decision.synthetic)
    return Predictions(champion, synthetic, compared, predictions, _by_patient(predictions))


def _images(path: Path) -> list[SourceFile]:
    if path.is_dir():
        files = [file for file in folder_files(path) if PurePosixPath(file.path).suffix.lower() in SUFFIXES]
        if not files:
            raise UsageError(f"no images ({', '.join(sorted(SUFFIXES))}) in the folder {path}", "name another folder")
        return [replace(file, path=str(path / file.path)) for file in files]
    if not path.exists():
        raise UsageError(f"no file or folder at {path}", "name images, or folders of them")
    return [plain_file(path, str(path))]


def _predict(
    file: SourceFile, model: ModelFile, threshold: float, rules: DataRules, bounds: Mapping[str, tuple[float, float]]
) -> Prediction:
    path = file.path
    patient = patient_of(PurePosixPath(path).name, rules.patient_pattern)
    if file.problem:
        return Prediction(path, patient, None, None, (), f"cannot be read: {file.problem}")
    try:
        data = file.read()
        image = read(data, rules)
    except BadImage as bad:
        return Prediction(path, patient, None, None, (), f"{bad.reason}: {bad.detail}")
    except DataInvalid as error:
        return Prediction(path, patient, None, None, (), error.message)
    problems = judge_image(measure(image, size=len(data)), rules, bounds)
    findings = [Finding(reason=reason, key=path, detail=detail) for reason, detail in problems]
    for finding in with_severities(findings, rules.severities):
        if finding.severity != "warn":
            return Prediction(path, patient, None, None, (), f"{finding.reason}: {finding.detail}")
    doubts = tuple(f"{reason}: {detail}" for reason, detail in problems)
    # One at a time: the last bit may depend on the batch size, and an image's score must not depend on other images.
    probability = float(model.score(to_square(image.rgb, model.side)[np.newaxis])[0])
    call = POSITIVE if probability >= threshold else NEGATIVE
    return Prediction(path, patient, probability, call, doubts, None)


def _by_patient(predictions: Sequence[Prediction]) -> list[PatientSummary]:
    grouped: defaultdict[str, list[Prediction]] = defaultdict(list)
    for row in predictions:
        grouped[row.patient or ""].append(row)
    return [
        PatientSummary(
            patient or None,
            len(rows),
            sum(row.call == POSITIVE for row in rows),
            sum(row.call == NEGATIVE for row in rows),
            sum(bool(row.doubts) for row in rows),
            sum(row.problem is not None for row in rows),
        )
        for patient, rows in sorted(grouped.items())
    ]
