"""The images of a report: chosen cells read from the store, decoded, and encoded anew as small WebP pictures.

Nothing of an input's own bytes reaches a page: only pixels do, and what cannot be decoded has a reason and no picture.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from infra.scoring.model_file import ModelFile
from tasks.cells.accepted import decode_accepted
from tasks.context import Context
from tasks.reporting.pictures.choose import SHOWN, choose, choose_for_heat, choose_new
from tasks.reporting.pictures.occlusion import draw_heat, occlusion
from tasks.snapshots.objects import read_object
from validation.digest import digest
from validation.errors import ModelFileInvalid, ObjectMissing
from validation.images.decode import RGB, BadImage, to_square
from validation.records import POSITIVE, Candidate, Decision, Evaluation, Snapshot, ValidationResult

log = logging.getLogger(__name__)

COLUMNS = ["gallery", "key", "sha256", "patient", "label", "challenger", "champion", "other", "note", "side", "image"]
THUMBNAIL, HEAT, QUALITY = 96, 112, 80
QUARANTINED, QUARANTINED_EACH = 30, 6
# These are images that nothing is wrong with, or no images at all.
NOT_QUARANTINED = ("no patient", "junk file")
# A large model takes long to ask 50 times a cell; the report must not.
HEAT_SECONDS = 4.0


@dataclass
class Gathered:
    """Rows of the table of cells, how many there are of each gallery in all, and what is missing."""

    rows: list[pd.DataFrame] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    @property
    def table(self) -> pd.DataFrame:
        """All rows, with every column, whatever came together."""
        whole = pd.concat([*self.rows, _empty()], ignore_index=True) if self.rows else _empty()
        return whole.reindex(columns=COLUMNS).astype({"label": "int64", "side": "int64"})


def _empty() -> pd.DataFrame:
    kinds = dict.fromkeys(("challenger", "champion", "other"), "float64") | dict.fromkeys(("label", "side"), "int64")
    return pd.DataFrame({name: pd.Series(dtype=kinds.get(name, "object")) for name in COLUMNS})


# Pillow knows dozens of formats more, each with bugs of its own.
_DRAWABLE = ("PNG", "JPEG")


def gather_cells(
    context: Context,
    decision: Decision,
    evaluation: Evaluation | None,
    predictions: pd.DataFrame | None,
    candidates: Iterable[Candidate],
) -> Gathered:
    """Return all images that the report on a decision shows. What cannot be had is left out by name, never an error."""
    gathered = Gathered()
    candidates = tuple(candidates)
    if evaluation is not None and predictions is not None and len(predictions):
        _scored(context, decision, evaluation, predictions, candidates, gathered)
    _new(context, decision, gathered)
    _batches(context, candidates, gathered)
    _quarantined(context, decision, gathered)
    return gathered


def _scored(
    context: Context,
    decision: Decision,
    evaluation: Evaluation,
    predictions: pd.DataFrame,
    candidates: tuple[Candidate, ...],
    gathered: Gathered,
) -> None:
    """The galleries of holdout cells, and the heat maps of a few of them."""
    metrics = {
        "challenger": evaluation.challenger_metrics,
        "champion": evaluation.champion_metrics,
        "other": evaluation.other_metrics,
    }
    thresholds = {name: m.threshold for name, m in metrics.items() if m is not None and _has(predictions, name)}
    chosen, counts = choose(predictions, thresholds, decision.id)
    gathered.counts.update(counts)
    gathered.rows.append(_with_thumbnails(context, chosen))
    challenger = next((c for c in candidates if c.id == decision.challenger), None)
    if challenger is not None:
        _heat(context, challenger, choose_for_heat(chosen), gathered)


def _has(predictions: pd.DataFrame, role: str) -> bool:
    return role in predictions and bool(np.isfinite(predictions[role].to_numpy(dtype=np.float64)).all())


def _with_thumbnails(context: Context, cells: pd.DataFrame) -> pd.DataFrame:
    shown = cells.groupby("gallery", sort=False).cumcount() < cells["gallery"].map(lambda name: SHOWN.get(name, 1_000))
    images: dict[str, bytes] = {}
    pictures = []
    for wanted, key, sha256 in zip(shown, cells["key"], cells["sha256"], strict=True):
        if wanted and sha256 not in images:
            images[sha256] = _thumbnail(_pixels(context, key, sha256))
        pictures.append(images[sha256] if wanted else b"")
    return cells.assign(image=pictures, side=THUMBNAIL, note="")


def _pixels(context: Context, key: str, sha256: str) -> RGB | None:
    """Return an image as RGB, of whatever mode it is; None when there is none that can safely be drawn."""
    if not sha256:
        return None
    try:
        data = read_object(context, key, sha256)
        return decode_accepted(data, context.settings.data.max_pixels)
    except BadImage:
        return _leniently(data, context.settings.data.max_pixels)
    except ObjectMissing as error:  # a store that does not answer is another matter: what is stored now stays
        log.info("not in the report: %r: %s", key, error.message)
        return None


def _leniently(data: bytes, limit: int) -> RGB | None:
    """What the eye can still make of an image that was refused: another mode, too small, no cell."""
    try:
        with Image.open(io.BytesIO(data), formats=_DRAWABLE) as image:
            return np.asarray(image.convert("RGB")) if max(image.size) <= limit else None
    except Exception:  # any decoder error: there is no picture, and the finding says why
        return None


def _thumbnail(pixels: RGB | None, side: int = THUMBNAIL) -> bytes:
    return b"" if pixels is None else encode(to_square(pixels, side))


def encode(pixels: RGB) -> bytes:
    """Return pixels as a WebP file: small, without metadata, the same bytes each time."""
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, format="WEBP", quality=QUALITY, method=4)
    return data.getvalue()


def _heat(context: Context, challenger: Candidate, cells: pd.DataFrame, gathered: Gathered) -> None:
    try:
        data = context.store.get(challenger.model_key)
        model = ModelFile(data, sha256_expected=challenger.model_sha256)
    except (ObjectMissing, ModelFileInvalid) as error:
        gathered.left_out.append(f"What the challenger looked at: {error.message}.")
        return
    started, pictures, kept = time.monotonic(), [], []
    for index, (key, sha256) in enumerate(zip(cells["key"], cells["sha256"], strict=True)):
        pixels = _pixels(context, key, sha256)
        if pixels is None:
            continue
        if time.monotonic() - started > HEAT_SECONDS:
            gathered.left_out.append(f"Heat maps of {len(cells) - index} further cells: the model is too slow here.")
            break
        image = to_square(pixels, model.side)
        pictures.append(encode(draw_heat(image, occlusion(model, image), HEAT)))
        kept.append(index)
    gathered.rows.append(cells.iloc[kept].assign(image=pictures, side=HEAT, note=""))


def _new(context: Context, decision: Decision, gathered: Gathered) -> None:
    """A sample of what the snapshot holds and its parent did not."""
    snapshot = context.records.load(Snapshot, decision.snapshot)
    parent = context.records.find(Snapshot, snapshot.parent) if snapshot.parent else None
    try:
        before = context.records.load_table(parent.table) if parent is not None else None
    except ObjectMissing:
        before = None
    if snapshot.parent and before is None:
        gathered.left_out.append("New cells: the snapshot before is gone, so nobody can say what is new.")
        return
    rows = context.records.load_table(snapshot.table)
    chosen, count = choose_new(rows[(rows["problem"] == "") & (rows["label"] != "")], before, decision.id)
    gathered.counts["new"] = count
    labels = (chosen["label"] == POSITIVE).astype(int)
    gathered.rows.append(_with_thumbnails(context, chosen.assign(label=labels)))


def _batches(context: Context, candidates: tuple[Candidate, ...], gathered: Gathered) -> None:
    for candidate in candidates:
        try:
            data = context.store.get(candidate.batch_key) if candidate.batch_key else b""
        except ObjectMissing as error:
            gathered.left_out.append(f"The training batch of {candidate.spec.model}: {error.message}.")
            continue
        pixels = _leniently(data, limit=10_000) if data else None
        if pixels is not None:
            row = {
                "gallery": "batch",
                "key": "",
                "sha256": "",
                "patient": "",
                "label": -1,
                "note": candidate.spec.model,
            }
            gathered.rows.append(pd.DataFrame([{**row, "side": pixels.shape[1], "image": encode(pixels)}]))


def _quarantined(context: Context, decision: Decision, gathered: Gathered) -> None:
    """Images that were set aside, a few of each reason, with a picture where one can be made."""
    validation = context.records.load(ValidationResult, decision.validation)
    findings = context.records.load_table(validation.findings)
    if "severity" in findings:
        findings = findings[findings["severity"] == "reject"]
    findings = findings[~findings["reason"].isin(NOT_QUARANTINED)]
    gathered.counts["quarantined"] = int(findings["key"].nunique())
    shown = findings.groupby("reason", sort=False).head(QUARANTINED_EACH).drop_duplicates("key").head(QUARANTINED)
    digests = _digests(context, decision)
    rows: list[dict[str, Any]] = []
    for reason, key, detail in shown[["reason", "key", "detail"]].itertuples(index=False, name=None):
        sha256 = digests.get(key, "")
        # A name of its own for each: an image that was never read has no digest, and is not its neighbour.
        name = sha256 or digest("unread", key)
        row = {"gallery": "quarantined", "key": key[:1_000], "sha256": name, "patient": "", "label": -1}
        note = f"{reason}: {detail}"[:1_000]
        rows.append({**row, "note": note, "side": THUMBNAIL, "image": _thumbnail(_pixels(context, key, sha256))})
    if rows:
        gathered.rows.append(pd.DataFrame(rows))


def _digests(context: Context, decision: Decision) -> Mapping[str, str]:
    rows = context.records.load_table(context.records.load(Snapshot, decision.snapshot).table)
    return dict(zip(rows["key"], rows["sha256"], strict=True))
