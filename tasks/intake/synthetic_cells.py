"""Synthetic red blood cells: for the tests, and for a first run without data.

They have the difficulties of the real ones (NLM set): each patient's own stain, focus, size and light; infected
patients with cells of both classes and healthy ones without parasites; rings, dots and trophozoites, often at the edge;
and on cells of both classes platelets, drops of stain, dirt and vacuoles. 4% of the parasites are faint and 2% of the
uninfected cells carry a perfect double of one, so 1.0 is out of reach. They say nothing about real cells.

Everything follows from the seed and the indices of patient, night and cell: a night does not depend on other nights.
The same machine and library versions give the same bytes; otherwise a pixel may round differently.

Measured 2026-11-22 with 90 patients on night 1, split by patient, trained on 1,049 cells of night 1 (58 patients),
tested on 1,499 cells of 82 other patients among the first 560, one run: the project's
Keras CNN at 64 px, 16 epochs (314 s on busy cores), reaches accuracy 0.960, AUC 0.993, sensitivity 0.953, specificity
0.967. Logistic regression on colour alone: 0.51 with mean RGB, 0.91 with mean and standard deviation or with 16-bin
histograms, since grown parasites darken a cell. Drawing: 185 cells a second on one busy core.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from validation.errors import UsageError
from validation.records import NEGATIVE, POSITIVE

Array = NDArray[np.float32]

# Each use has its own random stream, so that drawing more in one never shifts another.
_LOOK, _VISIT, _CELL, _RETURN = range(4)
_FIRST_NIGHT = datetime(2026, 1, 1, 9)
_RETURNING = 0.5  # known patients that return on a later night, relative to its new ones

# Median cytoplasm of real patients by family of stain, and the darkest 1.5% of their parasitized cells (NLM set).
_STAINS: tuple[tuple[float, tuple[int, int, int], tuple[int, int, int]], ...] = (
    (0.48, (207, 150, 151), (165, 45, 122)),  # salmon
    (0.17, (200, 140, 160), (160, 40, 130)),  # rose
    (0.13, (176, 164, 182), (140, 60, 165)),  # grey-lilac
    (0.12, (152, 146, 182), (125, 45, 160)),  # violet
    (0.10, (190, 168, 154), (160, 85, 130)),  # sand
)
# What the second clinic's dye takes from the cytoplasm. A CNN that saw violet parasites alone misses two of three.
_BLUE = np.array((-120, -30, 20))


@dataclass(frozen=True)
class SyntheticCell:
    """One cell image. ``label`` is the class it is filed under; ``true_label`` is what was drawn."""

    name: str
    label: str
    true_label: str
    patient: str
    png: bytes


@dataclass(frozen=True)
class SyntheticPlan:
    """The deliveries of the synthetic clinic.

    Attributes:
        seed: another seed gives other patients with the same names.
        patients: new patients on night 1.
        cells_per_patient: mean number of cells of a new patient; each has 0.55 to 1.45 times as many.
        new_patients: new patients on each later night.
        clinic_night: the night on which a second clinic joins, whose dye makes parasites blue and leaves
            violet drops on two of three cells.
        clinic_patients: patients of the second clinic, all of whom come on that night.
        label_noise: share of cells that are filed under the wrong class.
        scale: 1.0 gives cells of 80-190 px like the real ones; 0.3 is good for tests.
        healthy_share: share of patients without malaria. Above 0.44 the classes can no longer be balanced.
    """

    seed: int = 7
    patients: int = 60
    cells_per_patient: int = 18
    new_patients: int = 12
    clinic_night: int = 3
    clinic_patients: int = 110
    label_noise: float = 0.0
    scale: float = 1.0
    healthy_share: float = 0.25

    def __post_init__(self) -> None:
        counts = (self.seed, self.patients - 1, self.cells_per_patient - 1, self.new_patients, self.clinic_patients)
        whole = min(*counts, self.clinic_night - 2)
        if whole < 0 or not (0 <= self.label_noise <= 1 and 0 <= self.healthy_share <= 1 and 0.1 <= self.scale <= 4):
            raise UsageError(
                f"impossible plan for synthetic cells: {self}",
                "counts must be positive, shares within 0..1, and scale within 0.1..4",
            )

    def arriving(self, night: int) -> range:
        """Return the new patients of a night, by index."""
        known = 0
        for number in range(1, night):
            known += self._new(number)
        return range(known, known + self._new(night))

    def is_of_second_clinic(self, index: int) -> bool:
        """Return whether a patient comes from the second clinic."""
        return index in self.arriving(self.clinic_night)

    def _new(self, night: int) -> int:
        if night == 1:
            return self.patients
        return self.clinic_patients if night == self.clinic_night else self.new_patients


@dataclass(frozen=True)
class _Look:
    """The common properties of a patient's cells: stain, microscope, smear. Lengths are in radii of the mean cell."""

    name: str
    infected: bool
    radius: float  # px at scale 1
    cytoplasm: Array
    chromatin: Array
    pale: Array  # the empty field: seen at the rim, in the pallor, in a vacuole
    contrast: float
    blur: float  # px at scale 1
    grain: float
    pallor: float
    crowding: float
    dirt: float
    stippling: float
    light: tuple[float, float]
    drops: float  # probability of drops of stain on a cell
    drop: float  # their size, relative to those of a clean stain
    ink: Array  # their colour


def folder_of(cell: SyntheticCell) -> str:
    """Return the key of a cell below ``labeled/``: ``<Class>/<name>``."""
    return f"{cell.label}/{cell.name}"


def night_cells(night: int, plan: SyntheticPlan = SyntheticPlan()) -> Iterator[SyntheticCell]:
    """Yield the cells that arrive on one night (the first is 1), drawn on demand.

    Night 1 delivers ``plan.patients`` patients; each later one ``plan.new_patients`` new ones (or those of the second
    clinic) and more cells of a few known ones.

    Raises:
        UsageError: for a night before the first.
    """
    if night < 1:
        raise UsageError(f"there is no synthetic night {night}", "nights are counted from 1")
    new = plan.arriving(night)
    visits = [(index, plan.cells_per_patient) for index in new]
    if known := new.start:
        rng = np.random.default_rng([plan.seed, _RETURN, night])
        back = rng.choice(known, size=min(known, max(1, round(_RETURNING * plan.new_patients))), replace=False)
        visits = [(int(index), math.ceil(plan.cells_per_patient / 2)) for index in sorted(back)] + visits
    return (cell for index, mean in visits for cell in _visit(index, night, mean, plan))


def _visit(index: int, night: int, mean: int, plan: SyntheticPlan) -> Iterator[SyntheticCell]:
    """Yield the cells of one patient that arrive on one night."""
    look = _look(index, plan)
    rng = np.random.default_rng([plan.seed, _VISIT, index, night])
    count = max(2, round(mean * rng.uniform(0.55, 1.45)))
    # Infected patients have more parasitized cells, to balance the healthy ones; but always some of both.
    share = min(0.9, 0.5 / max(1e-9, 1 - plan.healthy_share))
    positives = min(count - 1, max(1, math.floor(count * share + rng.random()))) if look.infected else 0
    positive = rng.permutation(np.arange(count) < positives)
    numbers = np.cumsum(rng.integers(1, 9, count))
    taken = _FIRST_NIGHT + timedelta(days=night - 1, seconds=int(rng.integers(8 * 3600)))
    wrong = rng.random(count) < plan.label_noise
    for i in range(count):
        true_label, other = (POSITIVE, NEGATIVE) if positive[i] else (NEGATIVE, POSITIVE)
        shot = taken + timedelta(seconds=40 * (i // 6))  # about six cells per photograph
        yield SyntheticCell(
            name=f"{look.name}ThinF_IMG_{shot:%Y%m%d_%H%M%S}_cell_{numbers[i]}.png",
            label=other if wrong[i] else true_label,
            true_label=true_label,
            patient=look.name,
            png=_draw(look, bool(positive[i]), plan.scale, np.random.default_rng([plan.seed, _CELL, index, night, i])),
        )


def _look(index: int, plan: SyntheticPlan) -> _Look:
    """Return patient number ``index``: infected or healthy by an even pattern, everything else at random."""
    second = plan.is_of_second_clinic(index)
    healthy = math.floor((index + 1) * plan.healthy_share) > math.floor(index * plan.healthy_share)
    rng = np.random.default_rng([plan.seed, _LOOK, index])
    _, cytoplasm, chromatin = _STAINS[rng.choice(len(_STAINS), p=[stain[0] for stain in _STAINS])]
    # Real stains differ in brightness, between red and blue, and in depth (green), in that order.
    tint = rng.normal(0, 5) + rng.normal(0, 6) * np.array((1, 0, -1)) + rng.normal(0, 7) * np.array((0.3, 1, 0.4))
    exposure = rng.normal(1, 0.045)
    dyed = np.array(cytoplasm) + _BLUE if second else np.array(chromatin)
    return _Look(
        # Far above the real ones (C1 to C239), so that no synthetic patient is taken for a real one; and from 1401 on,
        # the folds are about equal.
        name=f"C{1401 + index}" if healthy else f"C{1401 + index}P{1362 + index}",
        infected=not healthy,
        radius=float(np.clip(rng.normal(62, 7), 48, 76)),
        cytoplasm=((np.array(cytoplasm) + tint) * exposure).astype(np.float32),
        chromatin=((dyed + 0.5 * tint + rng.normal(0, (8, 10, 8))) * exposure).astype(np.float32),
        pale=(np.array((238, 226, 208)) * exposure + rng.normal(0, 5, 3)).astype(np.float32),
        contrast=rng.uniform(0.75, 1.0),
        blur=rng.uniform(0.3, 1.6),
        grain=rng.uniform(0.5, 1.6),
        pallor=rng.choice((0.05, 0.25, 0.5)) * rng.uniform(0.6, 1.2),
        crowding=rng.uniform(0.02, 0.3),
        dirt=(dirt := rng.uniform(0.3, 1.1)),
        stippling=max(0.0, rng.uniform(-0.5, 0.5)),
        light=(rng.normal(0, 0.02), rng.normal(0, 0.02)),
        drops=0.65 if second else 0.1 * dirt,
        drop=1.8 if second else 1.0,
        ink=(np.array(chromatin) * exposure * np.array((0.62, 0.8, 0.75))).astype(np.float32),
    )


class _Canvas:
    """A cell that is being drawn: float pixels [h, w, 3], coordinates in cell radii from its centre."""

    def __init__(self, pixels: Array, radius: float, rng: np.random.Generator) -> None:
        self.pixels, self.radius, self.rng = pixels, radius, rng

    def stamp(self, at: tuple[float, float], reach: float, alpha: Callable[[Array, Array], Array], ink: Array) -> None:
        """Blend in ``ink`` by ``alpha(u, v)`` within ``reach`` of the point ``at``, in a randomly rotated frame."""
        centre = [n / 2 + c * self.radius for n, c in zip(self.pixels.shape[1::-1], at, strict=True)]
        (x0, x1), (y0, y1) = (
            (max(0, int(c - reach * self.radius)), max(0, int(c + reach * self.radius) + 2)) for c in centre
        )
        patch = self.pixels[y0:y1, x0:x1]
        y, x = np.ogrid[: patch.shape[0], : patch.shape[1]]
        u, v = ((x + x0 - centre[0]) / self.radius, (y + y0 - centre[1]) / self.radius)
        turn = self.rng.uniform(0, 2 * math.pi)
        a = alpha(u * math.cos(turn) - v * math.sin(turn), u * math.sin(turn) + v * math.cos(turn))
        patch += np.clip(a, 0, 1).astype(np.float32)[..., None] * (ink - patch)

    def spot(self, at: tuple[float, float], long: float, wide: float, strength: float, ink: Array) -> None:
        """Draw a compact ellipse with half axes ``long`` and ``wide``."""
        self.stamp(
            at, 1.7 * max(long, wide), lambda u, v: strength * np.exp(-(((u / long) ** 2 + (v / wide) ** 2) ** 2)), ink
        )

    def ring(self, at: tuple[float, float], radius: float, thick: float, strength: float, ink: Array) -> None:
        """Draw a slightly oval ring, thinner on one side."""
        oval, open_side = self.rng.uniform(0.75, 1.25), self.rng.uniform(0.0, 0.8)

        def alpha(u: Array, v: Array) -> Array:
            r = np.hypot(u, v * oval)
            line = np.exp(-(((r - radius) / thick) ** 2))
            return np.asarray(strength * line * (1 - open_side * 0.5 * (1 - u / (r + 1e-3))), np.float32)

        self.stamp(at, 1.5 * radius + 2 * thick, alpha, ink)


def _draw(look: _Look, parasitized: bool, scale: float, rng: np.random.Generator) -> bytes:
    """Return one cell as PNG bytes: RGB, black outside the cell, cropped tightly."""
    radius = look.radius * scale * float(np.clip(rng.normal(1, 0.07), 0.8, 1.2))
    mask, rho, body = _body(look, radius, scale, rng)
    size = (mask.shape[1], mask.shape[0])
    canvas = _Canvas(np.asarray(Image.fromarray(body).resize(size, Image.Resampling.BICUBIC), np.float32), radius, rng)
    inside = np.argwhere(rho < 0.93)
    step = size[0] / rho.shape[1]

    def place(edge: float) -> tuple[float, float]:
        """Return a point inside the cell, with probability ``edge`` close to its outline."""
        near = inside[rho[tuple(inside.T)] > 0.74] if rng.random() < edge else inside
        y, x = near[int(rng.random() * len(near))] if len(near) else (rho.shape[0] / 2, rho.shape[1] / 2)
        return (x + 0.5) * step / radius - size[0] / 2 / radius, (y + 0.5) * step / radius - size[1] / 2 / radius

    _distract(canvas, look, place)
    if parasitized:
        for _ in range(rng.choice((1, 2, 3), p=(0.76, 0.18, 0.06))):
            _parasite(canvas, look, place(0.4), 0.4 if rng.random() < 0.04 else rng.uniform(0.75, 1.0))
    elif rng.random() < 0.02:  # a platelet or a drop of stain indistinguishable from a parasite
        _parasite(canvas, look, place(0.4), rng.uniform(0.35, 0.9))
    return _finish(canvas.pixels, mask, look, scale, rng)


def _body(look: _Look, radius: float, scale: float, rng: np.random.Generator) -> tuple[NDArray[np.bool_], Array, Array]:
    """Return the mask [h, w] at full size, and on a coarse grid rho (1 at the outline, more outside) and uint8 colours.

    The coarse grid gives the stepped outline of the real cells, and saves time.
    """
    step = max(1, round(4 * scale))
    n = math.ceil(2.7 * radius / step)
    y, x = np.mgrid[:n, :n].astype(np.float32) * (step / radius) + (0.5 - n / 2) * step / radius
    turn, squeeze = rng.uniform(0, 2 * math.pi), 1 + min(0.25, abs(rng.normal(0, 0.1)))
    u, v = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
    u, v = u / squeeze, v * squeeze
    waves = np.arange(2, 9)
    height, phase = rng.normal(0, 0.05, 7) / (waves - 1), rng.uniform(0, 2 * math.pi, 7)
    outline = 1 + np.cos(np.linspace(0, 2 * math.pi, 256)[:, None] * waves + phase) @ height
    rho = np.hypot(u, v) / outline[(np.arctan2(v, u) * (128 / math.pi)).astype(int)] + rng.normal(0, 0.012, (n, n))
    for _ in range(rng.binomial(2, look.crowding)):  # a neighbouring cell that was cut off
        side, reach = rng.uniform(0, 2 * math.pi), rng.uniform(0.25, 0.9)
        apart = np.hypot(x - (0.8 + reach) * math.cos(side), y - (0.8 + reach) * math.sin(side))
        rho = np.maximum(rho, 1 + (reach - apart) * 2)
    whole = rho < 1
    rows, columns = (slice(hit[0], hit[-1] + 1) for hit in (np.flatnonzero(whole.any(axis)) for axis in (1, 0)))
    dip = rng.uniform(-0.12, 0.12, 2)
    pallor = look.pallor * rng.uniform(0.3, 1.3) * np.exp(-((np.hypot(u - dip[0], v - dip[1]) / 0.42) ** 2))
    rim = 0.45 * np.clip((rho - 0.86) / 0.14, 0, 1) ** 2
    light = rng.normal(1, 0.025) + look.light[0] * x + look.light[1] * y
    colour = look.cytoplasm + rng.normal() * np.array((1.5, 4, 2)) + rng.normal(0, 1.5, 3)
    body = (colour + np.clip(pallor + rim, 0, 1)[..., None] * (look.pale - colour)) * light[..., None]
    mask = whole[rows, columns].repeat(step, 0).repeat(step, 1)
    return mask, rho[rows, columns].astype(np.float32), np.clip(body[rows, columns], 0, 255).astype(np.uint8)


def _parasite(canvas: _Canvas, look: _Look, at: tuple[float, float], visible: float) -> None:
    """Draw a ring with its chromatin, a chromatin dot, or a trophozoite; ``visible`` from 0 (invisible) to 1."""
    rng, strength = canvas.rng, visible * look.contrast
    size = rng.uniform(1.4, 2.1) * (0.6 + 0.4 * visible)
    dot = (0.125 * size * rng.uniform(0.8, 1.2), 0.08 * size * rng.uniform(0.8, 1.2))
    kind = rng.random()
    if kind < 0.55:
        radius = 0.2 * size
        canvas.spot(at, radius, radius, 0.35 * strength, look.pale)
        canvas.ring(at, radius, 0.05, 0.6 * strength, 0.6 * look.chromatin + 0.4 * look.cytoplasm)
        for _ in range(1 + (rng.random() < 0.2)):
            side = rng.uniform(0, 2 * math.pi)
            on_ring = (at[0] + radius * math.cos(side), at[1] + radius * math.sin(side))
            canvas.spot(on_ring, *dot, 0.95 * strength, look.chromatin)
    elif kind < 0.8:
        canvas.spot(at, *dot, 0.95 * strength, look.chromatin)
    else:
        for _ in range(5):
            near = (at[0] + rng.normal(0, 0.09), at[1] + rng.normal(0, 0.09))
            canvas.spot(near, 0.2 * size, 0.12 * size, 0.32 * strength, 0.7 * look.chromatin + 0.3 * look.cytoplasm)
        canvas.spot(at, *dot, 0.9 * strength, look.chromatin)


def _distract(canvas: _Canvas, look: _Look, place: Callable[[float], tuple[float, float]]) -> None:
    """Draw what any cell may have: platelets, drops of stain, dirt, vacuoles, stippling."""
    rng = canvas.rng
    violet = look.chromatin * np.array((0.82, 1.35, 1.12), np.float32)
    if rng.random() < 0.1 * look.dirt:  # a platelet: granules in a haze, with no sharp chromatin and no ring
        at, size = place(0.5), rng.uniform(0.09, 0.2)
        canvas.spot(at, 1.3 * size, size, rng.uniform(0.2, 0.4), violet)
        for _ in range(rng.integers(5, 10)):
            near = (at[0] + rng.normal(0, 0.5 * size), at[1] + rng.normal(0, 0.5 * size))
            canvas.spot(near, 0.045, 0.035, rng.uniform(0.3, 0.75), violet)
    if rng.random() < look.drops:  # drops of stain: smaller, rounder and darker than chromatin
        for _ in range(rng.integers(1, 5)):
            size = look.drop * rng.uniform(0.025, 0.055)
            canvas.spot(place(0.3), size, size, rng.uniform(0.6, 0.95), look.ink)
    if rng.random() < 0.1 * look.dirt:  # dirt: brown or grey, long
        ink = np.array((120, 100, 85), np.float32) * np.float32(rng.uniform(0.7, 1.3))
        canvas.spot(place(0.3), rng.uniform(0.08, 0.3), rng.uniform(0.03, 0.07), rng.uniform(0.3, 0.8), ink)
    if rng.random() < 0.12 * look.dirt:  # a vacuole or bubble: a ring without chromatin
        at, size = place(0.2), rng.uniform(0.1, 0.24)
        canvas.spot(at, size, size, rng.uniform(0.15, 0.5), look.pale)
        canvas.ring(at, size, 0.04, rng.uniform(0.15, 0.4), 0.72 * look.cytoplasm)
    for _ in range(rng.poisson(5 * look.stippling)):
        canvas.spot(place(0.1), 0.035, 0.03, rng.uniform(0.15, 0.45), 0.5 * (look.cytoplasm + look.chromatin))


def _finish(pixels: Array, mask: NDArray[np.bool_], look: _Look, scale: float, rng: np.random.Generator) -> bytes:
    """Return the cell as PNG: blurred, with sensor noise, cut out on black."""
    picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    blurred = np.asarray(picture.filter(ImageFilter.GaussianBlur(look.blur * scale)), np.float32)
    noisy = blurred + np.float32(look.grain) * rng.standard_normal((*mask.shape, 1), np.float32)
    # No pixel of the cell may be black: black means "outside".
    cell = (np.clip(noisy, 12, 255, out=noisy) * mask[..., None]).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(cell).save(buffer, "PNG", compress_level=1, compress_type=3)
    return buffer.getvalue()
