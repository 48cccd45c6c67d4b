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
# Under every other heading a cell is a badge of one that is shown before.
_BADGES = {
    "gained": "only the challenger is right", "lost": "only the champion is right", "mistakes": "confident mistake",
    "disputes": "label disputed", "heat": "looked at", "right": "random sample", "wrong": "random sample",
    "new": "new tonight",
}  # fmt: skip
_WORDS = {POSITIVE: "infected", NEGATIVE: "uninfected"}


class Picture(NamedTuple):
    """One picture of the page: its id there, its data URI, its size in pixels."""

    id: str
    data: Markup
    width: int
    height: int


class Cell(NamedTuple):
    """One picture with its words. ``is_wrong``: the challenger calls it other than it is filed."""

    picture: Picture | None
    key: str
    patient: str
    caption: str
    is_wrong: bool
    scores: tuple[tuple[str, float], ...]
    note: str
    badges: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The end of its key, which contains the patient's name where the store follows the rule."""
        return self.key.rpartition("/")[2].removesuffix(".png")

    @property
    def description(self) -> str:
        """The picture in words, for readers who cannot see it."""
        start = f"Cell {self.caption}" if self.caption else "Image"
        scores = ", ".join(f"{role} {value:.2f}" for role, value in self.scores)
        rest = f"probability of {POSITIVE}: {scores}" if scores else self.note
        return f"{start}; {rest}" if rest else start


class Gallery(NamedTuple):
    """Pictures under one heading. ``total`` counts all of the kind; ``elsewhere``: shown under another heading."""

    name: str
    cells: tuple[Cell, ...]
    total: int
    elsewhere: int = 0
    listed: tuple[str, ...] = ()

    @property
    def amount(self) -> str:
        """How many there are, and where those are that are not here."""
        if self.name in ("heat", "batch") or not self.total:
            return ""
        all_of_them = count(self.total, "image" if self.name == "quarantined" else "cell")
        shown = len(self.cells) + self.elsewhere
        here = all_of_them if shown >= self.total else f"{shown} of {all_of_them}"
        return f"{here}, {self.elsewhere} of them under another heading." if self.elsewhere else f"{here}."


def galleries(r: ReportInputs) -> tuple[list[Gallery], list[Picture]]:
    """Return all galleries that this night can have, in order, each cell in one of them, and the pictures they use."""
    pictures: dict[str, Picture] = {}
    result = []
    totals = r.exhibits.counts if r.exhibits is not None else {}
    found = dict(_rows(r, r.cells)) if r.cells is not None else {}
    # The drawing of what a model looked at contains the cell: it is not shown again.
    reasons: dict[str, list[str]] = {}
    for name in sorted(found, key=lambda name: name != "heat"):
        for row in found[name]:
            reasons.setdefault(row["sha256"] or f"{name} {row['note']}", []).append(name)
    for name, rows in found.items():
        here, elsewhere = [], 0
        for row in rows:
            first, *others = reasons[row["sha256"] or f"{name} {row['note']}"]
            if first == name:
                here.append(_cell(r, row, pictures, tuple(dict.fromkeys(_BADGES[o] for o in others if o in _BADGES))))
            else:
                elsewhere += 1
        listed = tuple(str(row["key"]) for row in rows) if name == "disputes" else ()
        shown = tuple(here[: SHOWN[name]] if name == "disputes" else here)
        result.append(Gallery(name, shown, totals.get(name, len(rows)), elsewhere, listed))
    return result, list(pictures.values())


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


def _cell(r: ReportInputs, row: Mapping[Any, Any], pictures: dict[str, Picture], badges: tuple[str, ...]) -> Cell:
    scores = {role: row[role] for role in ROLES if isinstance(row[role], float) and math.isfinite(row[role])}
    label = {1: POSITIVE, 0: NEGATIVE}.get(int(row["label"]), "")
    caption, is_wrong = f"filed {_WORDS[label]}" if label else "", False
    if r.evaluation is not None and "challenger" in scores:
        called = POSITIVE if scores["challenger"] >= r.evaluation.challenger_metrics.threshold else NEGATIVE
        caption, is_wrong = f"{caption}, called {_WORDS[called]}", called != label
    return Cell(
        picture=_picture(row["image"], pictures),
        key=str(row["key"]),
        patient=str(row["patient"]),
        caption=caption,
        is_wrong=is_wrong,
        scores=tuple(scores.items()),
        note=str(row["note"]),
        badges=badges,
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
