"""What was left out and why, the effect of settings on warnings, and drift: all over whole snapshots."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from tasks.cells.reference import reference_of
from tasks.commands.inspect_data import inspect_now, last_validation, quarantined
from tasks.context import Context
from tasks.pull import pull
from tasks.split import split
from tasks.validate import validate
from tests.builders import CountingStore, context_over, made_up_candidate, png, prepare, synthetic_cells
from validation.errors import UsageError
from validation.records import NEGATIVE, POSITIVE, ChampionRef, ValidationResult

pytestmark = pytest.mark.thorough

CELLS = synthetic_cells(patients=16, cells_per_patient=6, scale=0.7)
FIRST = sorted(CELLS)[0]
NIGHT = {"night_images": 5}


@pytest.fixture
def store() -> CountingStore:
    return CountingStore(CELLS)


@pytest.fixture
def context(store: CountingStore, home: Path) -> Context:
    return context_over(store, home, data=NIGHT)


def pixels_of(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def dim(data: bytes) -> bytes:
    return png((pixels_of(data) * 0.5).astype(np.uint8))


def reasons_of(context: Context, result: ValidationResult) -> dict[str, str]:
    table = context.records.load_table(result.findings)
    return dict(zip(table["key"], table["reason"], strict=True))


def test_what_was_left_out_is_listed_with_what_to_do_and_rejects_come_first(
    context: Context, store: CountingStore
) -> None:
    store.objects[f"labeled/{POSITIVE}/scan_1.png"] = png(pixels_of(CELLS[FIRST])[::-1])
    store.objects[f"labeled/{POSITIVE}/C9P9thin_text.png"] = b"no image"
    result = inspect_now(context, None)
    assert last_validation(context) == result
    rejected = quarantined(context, result)
    assert list(rejected["reason"]) == ["not an image"]
    row = rejected.iloc[0]
    assert row["key"] == f"labeled/{POSITIVE}/C9P9thin_text.png"
    assert (row["severity"], row["new"]) == ("reject", True)
    assert "under the same key" in row["advice"]
    assert len(row["sha256"]) == 64
    everything = quarantined(context, result, warnings=True)
    assert everything["reason"].iloc[0] == "not an image"
    assert "no patient" in set(everything["reason"])
    assert list(quarantined(context, result, reason="no patient")["key"]) == [f"labeled/{POSITIVE}/scan_1.png"]
    assert json.dumps(rejected.to_dict("records"))


def test_nothing_validated_yet_and_an_unknown_reason_are_clear_errors(context: Context) -> None:
    with pytest.raises(UsageError, match="nothing has been validated yet"):
        last_validation(context)
    result = inspect_now(context, None)
    with pytest.raises(UsageError, match="unknown reason 'blury'"):
        quarantined(context, result, reason="blury")


def test_a_repaired_object_is_taken_in_on_the_next_night(context: Context, store: CountingStore) -> None:
    whole = store.objects[FIRST]
    store.objects[FIRST] = whole[: len(whole) // 2]
    first = inspect_now(context, None)
    assert reasons_of(context, first)[FIRST] == "truncated"
    store.objects[FIRST] = whole
    second = inspect_now(context, None)
    assert FIRST not in reasons_of(context, second)
    assert second.accepted == first.accepted + 1
    assert second.new == 1
    assert FIRST in set(context.records.load_table(second.facts)["key"])


def test_only_tonights_findings_are_new(context: Context, store: CountingStore) -> None:
    store.objects[f"labeled/{POSITIVE}/C9P9thin_old.png"] = b"no image"
    inspect_now(context, None)
    store.objects[f"labeled/{POSITIVE}/C9P9thin_new.png"] = b"neither"
    result = inspect_now(context, None)
    assert result.reasons["not an image"] == 2
    assert result.new_reasons["not an image"] == 1
    table = context.records.load_table(result.findings).set_index("key")["new"]
    assert not table[f"labeled/{POSITIVE}/C9P9thin_old.png"]
    assert table[f"labeled/{POSITIVE}/C9P9thin_new.png"]


@pytest.mark.parametrize(
    ("severity", "accepted", "valid"), [("warn", True, True), ("reject", False, True), ("stop", False, False)]
)
def test_a_setting_decides_whether_an_unusual_stain_is_rejected(
    severity: str, accepted: bool, valid: bool, store: CountingStore, home: Path
) -> None:
    store.objects[FIRST] = dim(CELLS[FIRST])
    context = context_over(store, home, data={"severities": {"stain out of range": severity}})
    result = inspect_now(context, None)
    assert reasons_of(context, result)[FIRST] == "stain out of range"
    assert (FIRST in set(context.records.load_table(result.facts)["key"])) is accepted
    assert result.valid is valid
    stopped = [check.name for check in result.checks if not check.passed and check.severity == "invalid"]
    assert stopped == ([] if valid else ["no finding stops the night"])


def crowned(context: Context) -> ChampionRef:
    """A champion that was trained on the cells that are in the store now."""
    candidate = made_up_candidate(b"model").model_copy(update={"split": prepare(context).split.id})
    context.records.save(candidate, candidate.id)
    return ChampionRef(
        version="1",
        candidate=candidate.id,
        model="fastai",
        model_sha256=candidate.model_sha256,
        threshold=candidate.threshold,
    )


def dimmed(night: int) -> dict[str, bytes]:
    """Cells of other patients, photographed with too little light."""
    cells = synthetic_cells(night, patients=16, cells_per_patient=6, scale=0.7)
    return {key: dim(data) for key, data in cells.items() if key not in CELLS}


def test_drift_is_measured_against_the_champions_training_images(context: Context, store: CountingStore) -> None:
    champion = crowned(context)
    reference = reference_of(context, champion)
    assert reference.facts is not None
    trained = context.records.load_table(split(context, validate(context, pull(context))).table)
    assert set(reference.facts["key"]) == set(trained["key"])

    night = dimmed(2)
    assert len(night) >= 12
    for key in CELLS:
        del store.objects[key]
    store.objects |= night
    alone = inspect_now(context, None)
    assert "stain out of range" not in alone.reasons  # measured against itself, nothing drifts
    assert "no champion" in alone.reference
    against = inspect_now(context, champion)
    assert against.reasons["stain out of range"] > len(night) / 2
    assert against.accepted == alone.accepted
    assert "training images of version 1" in against.reference
    assert against.id != alone.id
    assert against.bounds != alone.bounds


def test_drift_is_a_warning_and_not_a_refusal(context: Context, store: CountingStore) -> None:
    champion = crowned(context)
    store.objects |= dimmed(2)
    result = inspect_now(context, champion)
    warned = {check.name for check in result.checks if not check.passed}
    assert "tonight: drift of brightness" in warned
    assert result.valid


def test_validation_works_without_the_champions_records(context: Context) -> None:
    gone = ChampionRef(version="3", candidate="f" * 24, model="keras", model_sha256="0" * 64, threshold=0.5)
    reference = reference_of(context, gone)
    assert reference.facts is None
    assert "records of version 3 are gone" in reference.name


def test_the_data_docs_are_in_the_store_and_show_the_batch(context: Context) -> None:
    result = inspect_now(context, None)
    assert result.data_docs is not None
    page = context.store.get(result.data_docs).decode()
    assert result.id in page
    assert "Uninfected cells" in page


def test_a_night_of_mostly_one_patient_is_a_warning(context: Context, store: CountingStore) -> None:
    inspect_now(context, None)
    noise = np.random.default_rng(7)
    for number in range(6):
        cell = np.zeros((60, 60, 3), np.uint8)
        cv2.circle(cell, (30, 30), 24, (190, 150, 160), -1)
        cell[cell > 0] -= noise.integers(0, 40, (cell > 0).sum()).astype(np.uint8)
        store.objects[f"labeled/{NEGATIVE}/C7P7thin_{number}.png"] = png(Image.fromarray(cell))
    checks = {check.name: check for check in inspect_now(context, None).checks}
    assert not checks["tonight: largest share of one patient"].passed
    assert checks["tonight: largest share of one patient"].observed == "1"
    assert checks["tonight: class ratio"].observed == "one class is missing"
