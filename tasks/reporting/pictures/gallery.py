"""The pictures of a report as the page lays them out: each defined once, told in words. Pure."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
from markupsafe import Markup
from PIL import Image

from tasks.reporting.format import count
from validation.digest import sha256
from validation.records import NEGATIVE, POSITIVE

if TYPE_CHECKING:
    from tasks.reporting.inputs import ReportInputs


@dataclass(frozen=True)
class Picture:
    """One picture of the page: its id there, its data URI, its size in pixels."""

    id: str
    data: Markup
    width: int
    height: int


@dataclass(frozen=True)
class Cell:
    """One picture with its words. ``mark`` is how the challenger called it: right, wrong, or nothing of the kind."""

    picture: Picture | None
    key: str
    patient: str
    label: str
    scores: tuple[tuple[str, float], ...]
    note: str
    mark: str


@dataclass(frozen=True)
class Gallery:
    """Pictures under one heading. ``total`` is how many there are of what ``cells`` shows a part of."""

    name: str
    title: str
    about: str
    cells: tuple[Cell, ...]
    total: int
    listed: tuple[str, ...] = ()


_ABOUT = {
    "gained": (
        "Challenger right, champion wrong",
        "What a promotion gains. The further the two are apart, the earlier a cell stands.",
    ),
    "lost": (
        "Champion right, challenger wrong",
        "What a promotion costs. The further the two are apart, the earlier a cell stands.",
    ),
    "mistakes": ("Most confident mistakes", "The challenger's, furthest from its threshold first."),
    "disputes": (
        "Label disputes",
        "Every model gives the filed class less than one chance in ten: either they are wrong, or the label is. "
        "A list for a person to review; no label is ever changed by this project.",
    ),
    "heat": (
        "What the challenger looked at",
        "Left the cell, right the same in grey: a part of it is covered at a time, and where that changes the score, "
        "it is coloured. Orange speaks for Parasitized, blue for Uninfected; the box is the place that matters most. "
        "Made from the model file alone, by occlusion.",
    ),
    "right": ("A sample of what is right", "Drawn at random from the challenger's right calls."),
    "wrong": ("A sample of what is wrong", "Drawn at random from the challenger's mistakes."),
    "new": ("New tonight", "Drawn at random from what the snapshot before did not hold, by filed class."),
    "batch": (
        "A training batch as the CNN saw it",
        "Cells of the first batch after padding, resizing and augmentation: turned, mirrored, stain varied. "
        "Upper two rows Parasitized, lower two Uninfected.",
    ),
    "quarantined": (
        "Set aside",
        "Not trained on, not scored, and left where they lie. Pictures are drawn anew from what could be decoded.",
    ),
}  # fmt: skip
_SCORED = ("gained", "lost", "mistakes", "disputes", "heat", "right", "wrong")


def galleries(r: ReportInputs) -> tuple[list[Gallery], list[Picture]]:
    """Return all galleries that this night can have, in order, and the pictures that they use."""
    if r.cells is None:
        return [], []
    pictures: dict[str, Picture] = {}
    totals = r.exhibits.counts if r.exhibits is not None else {}
    shown = [_gallery(r, name, pictures, totals) for name in _ABOUT if _belongs(r, name)]
    return shown, list(pictures.values())


def _belongs(r: ReportInputs, name: str) -> bool:
    if name in ("gained", "lost"):
        return r.evaluation is not None and r.evaluation.champion_metrics is not None
    return r.evaluation is not None if name in _SCORED else name != "batch" or bool(r.candidates)


def _gallery(r: ReportInputs, name: str, pictures: dict[str, Picture], totals: Mapping[str, int]) -> Gallery:
    rows = r.cells[r.cells["gallery"] == name] if r.cells is not None else pd.DataFrame()
    title, about = _ABOUT[name]
    cells = [_cell(r, row, pictures) for row in rows.to_dict("records")]
    shown = cells
    listed: tuple[str, ...] = ()
    if name == "disputes":
        shown, listed = cells[:24], tuple(cell.key for cell in cells)
    return Gallery(name, title, about, tuple(shown), totals.get(name, len(cells)), listed)


def _cell(r: ReportInputs, row: Mapping[Any, Any], pictures: dict[str, Picture]) -> Cell:
    scores = tuple((role, float(row[role])) for role in ("challenger", "champion", "other") if _is_number(row[role]))
    label = {1: POSITIVE, 0: NEGATIVE}.get(int(row["label"]), "")
    mark = ""
    if scores and r.evaluation is not None and scores[0][0] == "challenger":
        called = scores[0][1] >= r.evaluation.challenger_metrics.threshold
        mark = "right" if called == (label == POSITIVE) else "wrong"
    return Cell(
        picture=_picture(row["image"], pictures),
        key=str(row["key"]),
        patient=str(row["patient"]),
        label=label,
        scores=scores,
        note=str(row["note"]),
        mark=mark,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _picture(data: Any, pictures: dict[str, Picture]) -> Picture | None:
    if not isinstance(data, bytes) or not data:
        return None
    name = sha256(data)
    if name not in pictures:
        with Image.open(io.BytesIO(data), formats=("WEBP",)) as image:
            width, height = image.size
        uri = f"data:image/webp;base64,{base64.b64encode(data).decode()}"
        pictures[name] = Picture(f"i{len(pictures)}", Markup(uri), width, height)  # noqa: S704 - base64 of our own file
    return pictures[name]


def told(cell: Cell) -> str:
    """What a reader who cannot see the picture is told."""
    filed = f"Cell filed as {cell.label}" if cell.label else "Image"
    scores = ", ".join(f"{role} {value:.2f}" for role, value in cell.scores)
    return (
        f"{filed}; probability of {POSITIVE}: {scores}" if scores else f"{filed}{'; ' + cell.note if cell.note else ''}"
    )


def amount(gallery: Gallery) -> str:
    """How many of how many are shown."""
    what = "image" if gallery.name == "quarantined" else "cell"
    if gallery.total <= len(gallery.cells) or gallery.name in ("heat", "batch"):
        return ""
    return f"{len(gallery.cells)} of {count(gallery.total, what)}."
