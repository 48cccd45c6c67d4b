"""The images of a report: chosen cells read from the store, decoded, and re-encoded as small WebP pictures.

No byte of an input reaches a page: only pixels do, and what cannot be decoded has a reason and no picture.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from PIL import Image

from infra.scoring.model_file import ModelFile
from tasks.cells.accepted import decode_accepted
from tasks.context import Context
from tasks.reporting.pictures.choose import ROLES, SHOWN, choose, choose_for_heat, choose_new
from tasks.reporting.pictures.occlusion import draw_heat, occlusion
from tasks.snapshots.objects import read_object
from validation.digest import digest
from validation.errors import ModelFileInvalid, ObjectMissing
from validation.images.decode import RGB, BadImage, to_square
from validation.records import POSITIVE, Candidate, Decision, Evaluation, Snapshot, ValidationResult

log = logging.getLogger(__name__)

COLUMNS = ["gallery", "key", "sha256", "patient", "label", "challenger", "champion", "other", "note", "side", "image"]
_TYPES = dict.fromkeys(COLUMNS, "object") | dict.fromkeys(ROLES, "float64") | {"label": "int64", "side": "int64"}
THUMBNAIL, HEAT, QUALITY = 128, 112, 80
QUARANTINED, QUARANTINED_EACH = 30, 6
# Findings on images that have no defect, or on files that are not images.
NOT_QUARANTINED = ("no patient", "junk file")
# Heat maps ask a model 50 times a cell, which takes long with a large one; the report must not.
HEAT_SECONDS = 4.0
# Pillow knows dozens of formats more, each with its own bugs.
_DRAWABLE = ("PNG", "JPEG")


@dataclass
class Gathered:
    """Rows of the table of cells, the number of images of each gallery in all, and what is missing."""

    rows: list[pd.DataFrame] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    @property
    def table(self) -> pd.DataFrame:
        """All rows, with every column, whichever galleries there are."""
        whole = pd.concat(self.rows, ignore_index=True) if self.rows else pd.DataFrame()
        return whole.reindex(columns=COLUMNS).astype(_TYPES)


def gather_cells(
    context: Context,
    decision: Decision,
    evaluation: Evaluation | None,
    predictions: pd.DataFrame | None,
    candidates: Iterable[Candidate],
) -> Gathered:
    """Return all images that the report on a decision shows. What is gone is left out by name, never an error."""
    gathered, candidates = Gathered(), tuple(candidates)
    if evaluation is not None and predictions is not None and len(predictions):
        chosen = _scored(context, decision, evaluation, predictions, gathered)
        challenger = next((c for c in candidates if c.id == decision.challenger), None)
        if challenger is not None:
            _heat(context, challenger, choose_for_heat(chosen), gathered)
    snapshot = context.records.load(Snapshot, decision.snapshot)
    objects = context.records.load_table(snapshot.table)
    _new(context, decision, snapshot, objects, gathered)
    for candidate in candidates:
        _batch(context, candidate, gathered)
    _quarantined(context, decision, objects, gathered)
    return gathered


def _scored(
    context: Context, decision: Decision, evaluation: Evaluation, predictions: pd.DataFrame, gathered: Gathered
) -> pd.DataFrame:
    """Gather the galleries of judged cells, and return their rows, with their folds."""
    sides = (evaluation.challenger_metrics, evaluation.champion_metrics, evaluation.other_metrics)
    thresholds = {
        role: metrics.threshold
        for role, metrics in zip(ROLES, sides, strict=True)
        if metrics and role in predictions and np.isfinite(predictions[role].to_numpy(dtype=np.float64)).all()
    }
    chosen, counts = choose(predictions, thresholds, decision.id)
    gathered.counts.update(counts)
    gathered.rows.append(_with_thumbnails(context, chosen))
    return chosen


def _with_thumbnails(context: Context, cells: pd.DataFrame) -> pd.DataFrame:
    shown = cells.groupby("gallery", sort=False).cumcount() < cells["gallery"].map(lambda name: SHOWN.get(name, 1_000))
    images: dict[str, bytes] = {}
    pictures = []
    for wanted, key, sha256 in zip(shown, cells["key"], cells["sha256"], strict=True):
        if wanted and sha256 not in images:
            images[sha256] = _thumbnail(context, key, sha256)
        pictures.append(images[sha256] if wanted else b"")
    return cells.assign(image=pictures, side=THUMBNAIL, note="")


def _thumbnail(context: Context, key: str, sha256: str) -> bytes:
    pixels = _pixels(context, key, sha256)
    return b"" if pixels is None else encode(to_square(pixels, THUMBNAIL))


def _pixels(context: Context, key: str, sha256: str) -> RGB | None:
    """Return an image as RGB, of whatever mode it is; None where it cannot safely be drawn."""
    if not sha256:
        return None
    try:
        data = read_object(context, key, sha256)
        return decode_accepted(data, context.settings.data.max_pixels)
    except BadImage:
        return _leniently(data, context.settings.data.max_pixels)
    except ObjectMissing as error:  # a store that does not answer raises: the exhibits are stored for good
        log.info("not in the report: %r: %s", key, error.message)
        return None


def _leniently(data: bytes, limit: int) -> RGB | None:
    """Return what can still be drawn of an image that was rejected: another mode, too small, not a cell."""
    try:
        with Image.open(io.BytesIO(data), formats=_DRAWABLE) as image:
            return np.asarray(image.convert("RGB")) if max(image.size) <= limit else None
    except Exception:  # any decoder error: there is no picture, and the finding says why
        return None


def encode(pixels: RGB) -> bytes:
    """Return pixels as a WebP file: small, without metadata, the same bytes each time."""
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, format="WEBP", quality=QUALITY, method=4)
    return data.getvalue()


def _heat(context: Context, challenger: Candidate, cells: pd.DataFrame, gathered: Gathered) -> None:
    """Gather the heat maps of a few cells, as many as there is time for."""
    try:
        model = ModelFile(context.store.get(challenger.model_key), sha256_expected=challenger.model_sha256)
    except (ObjectMissing, ModelFileInvalid) as error:
        gathered.left_out.append(f"What the challenger looked at: {error.message}.")
        return
    started, pictures = time.monotonic(), []
    for index, (key, sha256, fold) in enumerate(zip(cells["key"], cells["sha256"], cells["fold"], strict=True)):
        pixels = _pixels(context, key, sha256)
        if pixels is not None and time.monotonic() - started > HEAT_SECONDS:
            gathered.left_out.append(f"Heat maps of {len(cells) - index} further cells: the model is too slow here.")
            break
        image = None if pixels is None else to_square(pixels, model.side)
        pictures.append(b"" if image is None else encode(draw_heat(image, occlusion(model, image, fold), HEAT)))
    drawn = cells.head(len(pictures)).assign(image=pictures, side=HEAT, note="")
    gathered.rows.append(drawn[drawn["image"] != b""])


def _new(context: Context, decision: Decision, snapshot: Snapshot, objects: pd.DataFrame, gathered: Gathered) -> None:
    """Gather a sample of what the snapshot has and its parent did not."""
    parent = context.records.find_whole(Snapshot, snapshot.parent) if snapshot.parent else None
    before = context.records.load_table(parent.table) if parent is not None else None
    if snapshot.parent and before is None:
        gathered.left_out.append("New cells: the snapshot before is gone, so what is new is not known.")
        return
    chosen, gathered.counts["new"] = choose_new(
        objects[(objects["problem"] == "") & (objects["label"] != "")], before, decision.id
    )
    labels = (chosen["label"] == POSITIVE).astype(int)
    gathered.rows.append(_with_thumbnails(context, chosen.assign(label=labels)))


def _batch(context: Context, candidate: Candidate, gathered: Gathered) -> None:
    """Gather the picture of the first batch of a CNN's first member."""
    key = candidate.members[0].batch_key
    try:
        data = context.store.get(key) if key else b""
    except ObjectMissing as error:
        gathered.left_out.append(f"The training batch of {candidate.model}: {error.message}.")
        return
    pixels = _leniently(data, limit=10_000)
    if pixels is not None:
        row = _unscored("batch", "", "", candidate.model)
        gathered.rows.append(pd.DataFrame([row | {"side": pixels.shape[1], "image": encode(pixels)}]))


def _quarantined(context: Context, decision: Decision, objects: pd.DataFrame, gathered: Gathered) -> None:
    """Gather images that were set aside, a few of each reason, with a picture where one can be made."""
    findings = context.records.load_table(context.records.load(ValidationResult, decision.validation).findings)
    if "severity" in findings:
        findings = findings[findings["severity"] == "reject"]
    findings = findings[~findings["reason"].isin(NOT_QUARANTINED)]
    gathered.counts["quarantined"] = int(findings["key"].nunique())
    shown = findings.groupby("reason", sort=False).head(QUARANTINED_EACH).drop_duplicates("key").head(QUARANTINED)
    digests = dict(zip(objects["key"], objects["sha256"], strict=True))
    rows = []
    for reason, key, detail in shown[["reason", "key", "detail"]].itertuples(index=False, name=None):
        sha256 = digests.get(key, "")
        # An image that was never read has no digest; one made from its key keeps it distinct from its neighbours.
        row = _unscored("quarantined", key[:1_000], sha256 or digest("unread", key), f"{reason}: {detail}"[:1_000])
        rows.append(row | {"side": THUMBNAIL, "image": _thumbnail(context, key, sha256)})
    if rows:
        gathered.rows.append(pd.DataFrame(rows))


def _unscored(gallery: str, key: str, sha256: str, note: str) -> dict[str, object]:
    return {"gallery": gallery, "key": key, "sha256": sha256, "patient": "", "label": -1, "note": note}
