"""The properties of synthetic cells that tests and a first run without data rely on."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression

from tasks.intake.synthetic_cells import SyntheticCell, SyntheticPlan, folder_of, night_cells
from validation.errors import UsageError
from validation.records import CLASSES, NEGATIVE, POSITIVE

pytestmark = pytest.mark.thorough

PLAN = SyntheticPlan(patients=16, cells_per_patient=8, new_patients=4, clinic_patients=10, scale=0.3)
NLM_NAME = re.compile(r"C\d+(P\d+)?ThinF_IMG_20\d{6}_\d{6}_cell_\d+\.png")


@pytest.fixture(scope="module")
def nights() -> list[list[SyntheticCell]]:
    return [list(night_cells(night, PLAN)) for night in (1, 2, 3, 4)]


def pixels(cell: SyntheticCell) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(cell.png)) as image:
        assert image.format == "PNG"
        assert image.mode == "RGB"
        return np.asarray(image)


def infected(patient: str) -> bool:
    return "P" in patient


def true_labels(cells: Iterable[SyntheticCell]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for cell in cells:
        found.setdefault(cell.patient, set()).add(cell.true_label)
    return found


def test_the_same_seed_gives_the_same_bytes(nights: list[list[SyntheticCell]]) -> None:
    assert list(night_cells(2, PLAN)) == nights[1]  # though night 1 was not drawn before it
    assert list(night_cells(1, PLAN)) == nights[0]
    assert list(islice(night_cells(1, PLAN), 3)) == nights[0][:3]


def test_another_seed_gives_other_cells_of_other_patients(nights: list[list[SyntheticCell]]) -> None:
    others = list(night_cells(1, replace(PLAN, seed=8)))
    assert not {cell.png for cell in others} & {cell.png for cell in nights[0]}


def test_a_longer_first_night_leaves_the_patients_of_a_short_one_as_they_are(
    nights: list[list[SyntheticCell]],
) -> None:
    longer = list(islice(night_cells(1, replace(PLAN, patients=40)), len(nights[0])))
    assert longer == nights[0]


def test_no_two_cells_share_a_name_or_an_image(nights: list[list[SyntheticCell]]) -> None:
    cells = [cell for night in nights for cell in night]
    assert len({cell.name for cell in cells}) == len(cells)
    assert len({cell.png for cell in cells}) == len(cells)


def test_names_are_in_the_nlm_style_and_give_the_patient(nights: list[list[SyntheticCell]]) -> None:
    for cell in nights[0] + nights[1]:
        assert NLM_NAME.fullmatch(cell.name)
        found = re.match(r"(.*?)_?thin", cell.name, re.IGNORECASE)
        assert found is not None
        assert found.group(1) == cell.patient
        assert folder_of(cell) == f"{cell.label}/{cell.name}"


def test_no_synthetic_patient_has_the_name_of_a_real_one(nights: list[list[SyntheticCell]]) -> None:
    numbers = [int(re.findall(r"\d+", cell.patient)[0]) for night in nights for cell in night]
    assert min(numbers) > 239


def test_infected_patients_have_both_classes_and_healthy_ones_only_uninfected(
    nights: list[list[SyntheticCell]],
) -> None:
    for night in nights:
        for patient, labels in true_labels(night).items():
            assert labels == (set(CLASSES) if infected(patient) else {NEGATIVE})


def test_about_a_quarter_of_the_patients_is_healthy(nights: list[list[SyntheticCell]]) -> None:
    patients = {cell.patient for cell in nights[0]}
    assert len(patients) == PLAN.patients
    assert sum(not infected(patient) for patient in patients) == PLAN.patients // 4


@pytest.mark.parametrize("seed", [7, 42])
def test_the_classes_are_balanced_every_night(seed: int) -> None:
    plan = SyntheticPlan(seed=seed, patients=20, new_patients=10, scale=0.1)
    for night in (1, 2):
        labels = Counter(cell.label for cell in night_cells(night, plan))
        assert 0.4 <= labels[POSITIVE] / labels.total() <= 0.6


def test_patients_differ_in_how_many_cells_they_have(nights: list[list[SyntheticCell]]) -> None:
    counts = list(Counter(cell.patient for cell in nights[0]).values())
    assert np.mean(counts) == pytest.approx(PLAN.cells_per_patient, rel=0.2)
    assert max(counts) >= 1.5 * min(counts)


def test_label_noise_files_that_share_of_cells_under_the_wrong_class_and_changes_no_image() -> None:
    clean = list(night_cells(1, SyntheticPlan(patients=40, scale=0.1)))
    noisy = list(night_cells(1, SyntheticPlan(patients=40, scale=0.1, label_noise=0.05)))
    assert [cell.png for cell in noisy] == [cell.png for cell in clean]
    assert [cell.true_label for cell in noisy] == [cell.label for cell in clean]
    wrong = [cell.label != cell.true_label for cell in noisy]
    assert 0.025 <= np.mean(wrong) <= 0.075
    assert all(cell.label == cell.true_label for cell in clean)


def test_cells_are_cut_out_on_black_and_cropped_tight(nights: list[list[SyntheticCell]]) -> None:
    for cell in nights[0]:
        outside = pixels(cell).max(axis=2) == 0
        assert 0.1 < outside.mean() < 0.6
        edges = (outside[0], outside[-1], outside[:, 0], outside[:, -1])
        assert not any(edge.all() for edge in edges), "a border without a cell pixel: not cropped tight"
        assert np.mean(np.concatenate(edges)) > 0.3
        assert pixels(cell)[~outside].max(axis=1).min() >= 12, "a cell pixel that could be taken for outside"


def test_at_full_scale_cells_are_as_wide_as_the_real_ones() -> None:
    widths = [pixels(cell).shape[1] for cell in islice(night_cells(1), 150)]
    assert 110 <= np.median(widths) <= 145
    assert min(widths) >= 70
    assert max(widths) <= 215


def test_scale_changes_the_size_and_not_the_diagnosis() -> None:
    small, large = (list(islice(night_cells(1, replace(PLAN, scale=scale)), 20)) for scale in (0.3, 0.6))
    assert [(cell.name, cell.label) for cell in small] == [(cell.name, cell.label) for cell in large]
    ratio = [pixels(b).shape[0] / pixels(a).shape[0] for a, b in zip(small, large, strict=True)]
    assert np.mean(ratio) == pytest.approx(2, rel=0.1)


def test_stain_differs_between_patients_more_than_within_one(nights: list[list[SyntheticCell]]) -> None:
    stains: dict[str, list[NDArray[np.float64]]] = {}
    for cell in nights[0] + nights[1]:
        rgb = pixels(cell)
        stains.setdefault(cell.patient, []).append(rgb[rgb.max(axis=2) > 0].mean(axis=0))
    within = np.mean([np.var(stain, axis=0) for stain in stains.values()], axis=0)
    between = np.var([np.mean(stain, axis=0) for stain in stains.values()], axis=0)
    assert (between > 2 * within).all()


def test_a_patient_that_comes_again_looks_the_same(nights: list[list[SyntheticCell]]) -> None:
    first = {cell.patient: cell for cell in nights[0] if cell.true_label == NEGATIVE}
    again = [cell for night in nights[1:] for cell in night if cell.patient in first and cell.true_label == NEGATIVE]

    def stain(cell: SyntheticCell) -> NDArray[np.float64]:
        rgb = pixels(cell)
        return np.asarray(np.median(rgb[rgb.max(axis=2) > 0], axis=0), np.float64)

    own = np.mean([np.abs(stain(cell) - stain(first[cell.patient])).mean() for cell in again])
    others = np.mean([np.abs(stain(a) - stain(b)).mean() for a in first.values() for b in first.values() if a != b])
    assert own < 0.6 * others


def test_parasites_show_and_mean_colour_does_not_give_them_away() -> None:
    cells = list(night_cells(1, SyntheticPlan(patients=40, cells_per_patient=12, scale=0.3)))
    means, marks = [], []
    for cell in cells:
        rgb = pixels(cell)
        inside = rgb[rgb.max(axis=2) > 0]
        means.append(inside.mean(axis=0))
        marks.append(np.median(inside[:, 1]) - np.percentile(inside[:, 1], 1))  # a dark spot takes green away
    positive = np.array([cell.true_label == POSITIVE for cell in cells])
    assert np.mean(np.array(marks)[positive]) > 1.5 * np.mean(np.array(marks)[~positive])
    train = np.arange(len(cells)) < len(cells) // 2  # cells come patient by patient, so these are other patients
    shortcut = LogisticRegression(max_iter=2000).fit(np.array(means)[train], positive[train])
    assert shortcut.score(np.array(means)[~train], positive[~train]) < 0.7


def test_a_later_night_brings_new_patients_and_known_ones(nights: list[list[SyntheticCell]]) -> None:
    known = {cell.patient for cell in nights[0]}
    for number, night in enumerate(nights[1:], start=2):
        patients = {cell.patient for cell in night}
        new = PLAN.clinic_patients if number == PLAN.clinic_night else PLAN.new_patients
        assert len(patients - known) == new
        assert patients & known
        known |= patients


@pytest.mark.parametrize("wrong", [{"patients": 0}, {"label_noise": 1.5}, {"healthy_share": -0.1}, {"scale": 0.0}])
def test_an_impossible_plan_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="impossible plan"):
        replace(PLAN, **wrong)  # type: ignore[arg-type]


def test_a_night_before_the_first_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match="counted from 1"):
        night_cells(0, PLAN)
