"""The pictures of a report as the page lays them out: each defined once and described in words. Pure."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pandas as pd
from markupsafe import Markup
from PIL import Image

from tasks.reporting.format import count
from tasks.reporting.inputs import ReportInputs
from tasks.reporting.pictures.choose import ROLES, SHOWN
from validation.digest import sha256
from validation.records import NEGATIVE, POSITIVE

# In the order of the page; templates/images.html.j2 has their titles.
_SCORED = ("gained", "lost", "mistakes", "disputes", "heat", "right", "wrong")
_GALLERIES = (*_SCORED, "new", "batch", "quarantined")


class Picture(NamedTuple):
    """One picture of the page: its id there, its data URI, its size in pixels."""

    id: str
    data: Markup
    width: int
    height: int


class Cell(NamedTuple):
    """One picture with its words. ``mark``: the challenger called it right or wrong; empty where it was not scored."""

    picture: Picture | None
    key: str
    patient: str
    label: str
    scores: tuple[tuple[str, float], ...]
    note: str
    mark: str

    @property
    def description(self) -> str:
        """The picture in words, for readers who cannot see it."""
        filed = f"Cell filed as {self.label}" if self.label else "Image"
        scores = ", ".join(f"{role} {value:.2f}" for role, value in self.scores)
        rest = f"probability of {POSITIVE}: {scores}" if scores else self.note
        return f"{filed}; {rest}" if rest else filed


class Gallery(NamedTuple):
    """Pictures under one heading. ``total`` counts all images of the kind, of which ``cells`` are a part."""

    name: str
    cells: tuple[Cell, ...]
    total: int
    listed: tuple[str, ...] = ()

    @property
    def amount(self) -> str:
        """How many of how many are shown; empty where all are."""
        if self.total <= len(self.cells) or self.name in ("heat", "batch"):
            return ""
        return f"{len(self.cells)} of {count(self.total, 'image' if self.name == 'quarantined' else 'cell')}."


def galleries(r: ReportInputs) -> tuple[list[Gallery], list[Picture]]:
    """Return all galleries that this night can have, in order, and the pictures that they use."""
    pictures: dict[str, Picture] = {}
    galleries = []
    totals = r.exhibits.counts if r.exhibits is not None else {}
    for name, rows in () if r.cells is None else _rows(r, r.cells):
        cells = tuple(_cell(r, row, pictures) for row in rows)
        listed = tuple(cell.key for cell in cells) if name == "disputes" else ()
        shown = cells[: SHOWN[name]] if name == "disputes" else cells
        galleries.append(Gallery(name, shown, totals.get(name, len(cells)), listed))
    return galleries, list(pictures.values())


def _rows(r: ReportInputs, cells: pd.DataFrame) -> Iterator[tuple[str, list[dict[Any, Any]]]]:
    """Yield the galleries that this night can have, with their rows."""
    for name in _GALLERIES:
        belongs = name != "batch" or bool(r.candidates)
        if name in _SCORED:
            belongs = r.evaluation is not None
        if name in ("gained", "lost"):
            belongs = r.evaluation is not None and r.evaluation.champion_metrics is not None
        if belongs:
            yield name, cells[cells["gallery"] == name].to_dict("records")


def _cell(r: ReportInputs, row: Mapping[Any, Any], pictures: dict[str, Picture]) -> Cell:
    scores = {role: row[role] for role in ROLES if isinstance(row[role], float) and math.isfinite(row[role])}
    label = {1: POSITIVE, 0: NEGATIVE}.get(int(row["label"]), "")
    mark = ""
    if r.evaluation is not None and "challenger" in scores:
        called = scores["challenger"] >= r.evaluation.challenger_metrics.threshold
        mark = "right" if called == (label == POSITIVE) else "wrong"
    return Cell(
        picture=_picture(row["image"], pictures),
        key=str(row["key"]),
        patient=str(row["patient"]),
        label=label,
        scores=tuple(scores.items()),
        note=str(row["note"]),
        mark=mark,
    )


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
