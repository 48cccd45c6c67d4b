"""The images of a report: re-encoded, stored once with the report, and there when the bucket has lost them."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infra.registry.registry import Registry
from infra.scoring.model_file import ModelFile
from infra.store.keys import LABELED
from infra.store.memory import MemoryStore
from tasks.choose import prepare_contest
from tasks.context import Context
from tasks.decide import Evidence, decide
from tasks.evaluate import evaluate
from tasks.models import TrainingData, Variation
from tasks.models.onnx_file import combine as combine_files
from tasks.models.preparation import draw_batch, shuffled_batches
from tasks.models.variation import augment
from tasks.report import report
from tasks.reporting.pictures.gather import gather_cells
from tasks.reporting.pictures.occlusion import draw_heat, occlusion
from tasks.train import train
from tasks.training.specs import member_specs
from tests.builders import (
    GREEN,
    NOON,
    RED,
    SIDE,
    CountingStore,
    Prepared,
    candidate_of,
    channel_member,
    channel_model,
    context_over,
    leave_finished_training,
    plain_cells,
    png,
    prepare,
    single_network,
)
from tests.tasks.conftest import Crown
from tests.tasks.test_report import night_of
from validation.errors import StoreUnreachable
from validation.records import Candidate, Decision, Evaluation, Exhibits, Night, Start

pytestmark = pytest.mark.thorough


def the_night(context: Context, prepared: Prepared, registry: Registry, crown: Crown) -> Night:
    crown(candidate_of(context, prepared, channel_member(RED), name="keras", seed=2))
    challenger = candidate_of(context, prepared, channel_member(GREEN), name="fastai")
    start = Start(id="night1", champion=registry.champion(), started_at=NOON)
    contest = prepare_contest(context, (challenger,), start, registry, prepared.split, prepared.pack)
    evaluation = evaluate(context, contest, prepared.split, prepared.pack, registry)
    assert isinstance(evaluation, Evaluation), evaluation
    evidence = Evidence(prepared.snapshot, prepared.validation, prepared.split, (challenger,), {}, contest, evaluation)
    return night_of(decide(context, evidence))


@pytest.fixture
def night(context: Context, prepared: Prepared, registry: Registry, crown: Crown) -> Night:
    return the_night(context, prepared, registry, crown)


def test_pictures_are_re_encoded_and_no_input_byte_is_kept(context: Context, night: Night) -> None:
    report(context, night)
    exhibits = context.records.load(Exhibits, night.decision or "")
    cells = context.records.load_table(exhibits.cells)
    assert {"right", "new", "heat"} <= set(cells["gallery"])
    inputs = {context.store.get(info.key) for info in context.store.list(LABELED)}
    for data in set(cells["image"]) - {b""}:
        assert data not in inputs
        with Image.open(io.BytesIO(data)) as image:
            assert image.format == "WEBP"
    assert exhibits.counts["new"] == 360
    assert [look.number for look in exhibits.ledger] == [1]


def test_a_report_is_the_same_when_the_bucket_and_the_cache_have_lost_every_image(
    context: Context, night: Night, tmp_path: Path
) -> None:
    page = report(context, night).read_bytes()
    assert isinstance(context.store, MemoryStore)
    for key in [key for key in context.store.objects if key.startswith(LABELED) or "/candidates/" in key]:
        if not key.endswith(".json"):
            del context.store.objects[key]
    shutil.rmtree(context.workspace.home / "cache")
    machine = context_over(context.store, tmp_path / "elsewhere")
    assert report(machine, night).read_bytes() == page


def test_what_is_gone_before_the_first_report_is_left_out_by_name(
    context: Context, night: Night, prepared: Prepared
) -> None:
    decision = context.records.load(Decision, night.decision or "")
    evaluation = context.records.load(Evaluation, decision.evaluation or "")
    candidate = context.records.load(Candidate, decision.challenger or "")
    first = candidate.members[0].model_copy(update={"batch_key": "retraining/members/x/batch.png"})
    gone = candidate.model_copy(update={"members": (first, *candidate.members[1:]), "model_key": "gone.onnx"})
    shutil.rmtree(context.workspace.home / "cache")
    assert isinstance(context.store, MemoryStore)
    for info in list(context.store.list(LABELED)):
        del context.store.objects[info.key]
    predictions = context.records.load_table(evaluation.predictions)
    gathered = gather_cells(context, decision, evaluation, predictions, (gone,))
    assert [line.split(":")[0] for line in gathered.left_out] == [
        "What the challenger looked at",
        f"The training batch of {candidate.model}",
    ]
    assert set(gathered.table["image"]) == {b""}


def test_an_unreachable_store_ends_the_report_and_no_half_of_it_is_stored(context: Context, night: Night) -> None:
    """Otherwise the pictures would be missing for good: what a report shows is gathered once."""
    shutil.rmtree(context.workspace.home / "cache")
    assert isinstance(context.store, CountingStore)
    for info in context.store.list(LABELED):
        context.store.broken[info.key] = StoreUnreachable("the bucket does not answer")
    with pytest.raises(StoreUnreachable):
        report(context, night)
    assert context.records.find(Exhibits, night.decision or "") is None
    context.store.broken.clear()
    assert "data:image/webp" in report(context, night).read_text()


def test_bad_images_are_shown_with_their_reason_and_a_picture_where_there_is_one(tmp_path: Path) -> None:
    grey = np.full((30, 30), 90, np.uint8)
    grey[8:20, 8:20] = 200
    odd = f"{LABELED}Uninfected/C9P9thin_<script>_cell_1.png"
    objects = plain_cells() | {
        odd: png(Image.fromarray(grey)),
        f"{LABELED}Uninfected/C9P9thin_cell_2.png": b"no image",
        f"{LABELED}Parasitized/Thumbs.db": b"junk",
    }
    context = context_over(CountingStore(objects), tmp_path)
    ready = prepare(context)
    checks = tuple(check.model_copy(update={"passed": False}) for check in ready.validation.checks)
    validation = ready.validation.model_copy(update={"checks": checks, "id": "bad"})
    context.records.save(validation, "bad")
    night = night_of(decide(context, Evidence(ready.snapshot, validation)))
    page = report(context, night).read_text()
    exhibits = context.records.load(Exhibits, night.decision or "")
    cells = context.records.load_table(exhibits.cells)
    shown = cells[cells["gallery"] == "quarantined"].set_index("key")
    assert exhibits.counts["quarantined"] == len(shown) == 2
    assert shown.loc[odd, "note"] == "wrong mode: mode grey, RGB expected"
    assert shown.loc[odd, "image"]
    assert shown.loc[f"{LABELED}Uninfected/C9P9thin_cell_2.png", "image"] == b""
    assert "no picture" in page
    assert "<script>" not in page


def test_covering_the_place_that_counts_changes_the_score_most() -> None:
    image = np.full((SIDE, SIDE, 3), 100, np.uint8)
    image[8:12, 4:8, RED] = 250
    effect = occlusion(ModelFile(channel_model(RED)), image, fold=0)
    row, column = np.unravel_index(int(effect.argmax()), effect.shape)
    assert (int(row), int(column)) == (4, 2)  # the cover that is over it whole: steps of an eighth of the side
    assert effect[4, 2] > 0
    assert effect[0, 6] == pytest.approx(0, abs=1e-3)
    assert draw_heat(image, effect, 96).shape == (96, 96 * 2 + 4, 3)


def test_the_member_of_the_cells_fold_is_asked_and_a_file_without_members_as_a_whole() -> None:
    image = np.full((SIDE, SIDE, 3), 100, np.uint8)
    image[8:12, 4:8, RED] = 250
    members = combine_files([(0, channel_member(GREEN)), (3, channel_member(RED))])
    red, green = (occlusion(ModelFile(members), image, fold) for fold in (3, 0))
    assert red[4, 2] > 0.1
    assert green[4, 2] == pytest.approx(0, abs=1e-3)
    assert np.allclose(red, occlusion(ModelFile(single_network(RED)), image, fold=0), atol=1e-3)


def test_the_batch_picture_is_the_first_batch_and_leaves_the_random_state_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    images = rng.integers(1, 255, (40, SIDE, SIDE, 3), dtype=np.uint8)
    labels = (np.arange(40) % 2).astype(np.float32)
    data = TrainingData(images, labels, images[:4], labels[:4])
    np.random.seed(3)
    expected = np.random.random(3)
    np.random.seed(3)
    path = draw_batch(data, 20, Variation(0.1, 1.5, 0.1), seed=7, folder=tmp_path)
    assert np.array_equal(np.random.random(3), expected)
    sheet = np.asarray(Image.open(path)).reshape(4, SIDE, 8, SIDE, 3).transpose(0, 2, 1, 3, 4)
    chosen = shuffled_batches(40, 20, 7, 0)[0]
    batch = augment(images[chosen], Variation(0.1, 1.5, 0.1), np.random.default_rng((7, 0, 0)))
    infected = batch[labels[chosen] == 1]
    assert np.array_equal(sheet[:2].reshape(-1, SIDE, SIDE, 3)[: len(infected)], infected)


def test_a_member_keeps_the_picture_of_its_first_batch_and_the_report_shows_that_of_the_first(
    context: Context, prepared: Prepared, registry: Registry
) -> None:
    for spec in member_specs(context.settings, "fastai", prepared.split.id):
        folder = leave_finished_training(context, spec, channel_member(GREEN))
        (folder / "batch.png").write_bytes(png(np.full((64, 128, 3), 120 + 20 * spec.member, np.uint8)))
        result = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps(result | {"batch": "batch.png"}))
        member = train(context, spec, prepared.split, prepared.pack)
        assert member.batch_key is not None
        assert member.batch_key.startswith(f"retraining/members/{member.id}/")
        assert member.batch_key.endswith(".batch.png")
    candidate = candidate_of(context, prepared, channel_member(GREEN), seed=context.settings.training.seed)
    start = Start(id="night1", champion=None, started_at=NOON)
    contest = prepare_contest(context, (candidate,), start, registry, prepared.split, prepared.pack)
    evaluation = evaluate(context, contest, prepared.split, prepared.pack, registry)
    assert isinstance(evaluation, Evaluation)
    evidence = Evidence(prepared.snapshot, prepared.validation, prepared.split, (candidate,), {}, contest, evaluation)
    night = night_of(decide(context, evidence))
    page = report(context, night).read_text()
    assert "A training batch as the CNN saw it" in page
    cells = context.records.load_table(context.records.load(Exhibits, night.decision or "").cells)
    (batch,) = cells[cells["gallery"] == "batch"].to_dict("records")
    assert batch["note"] == "fastai"
    with Image.open(io.BytesIO(batch["image"])) as image:
        assert abs(int(np.asarray(image).mean()) - 120) <= 1
