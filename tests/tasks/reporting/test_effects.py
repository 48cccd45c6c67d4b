"""What a verdict means in cells: its numbers follow from the records, and its words claim no more than they show."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from tasks.reporting.effects import calls_by_prevalence, effects, limits, model_in_use
from tasks.reporting.figures.patients import called_plot, called_words, difference_plot
from tasks.reporting.inputs import ReportInputs
from tasks.reporting.models import judged_models
from tests.tasks.reporting.samples import (
    first_champion,
    full_inputs,
    gates,
    metrics,
    not_looked,
    one_class,
    predictions,
)
from validation.records import Interval, Verdict


def rows_of(r: ReportInputs) -> dict[str, Any]:
    shown = effects(r, judged_models(r))
    assert shown is not None
    return {row.name: row for row in shown.rows}


def with_difference(low: float, high: float) -> ReportInputs:
    made = full_inputs()
    assert made.evaluation is not None
    difference = Interval(value=(low + high) / 2, low=low, high=high, level=0.9958)
    differences = made.evaluation.differences | {"sensitivity": difference}
    return replace(made, evaluation=made.evaluation.model_copy(update={"differences": differences}))


def test_errors_in_a_thousand_cells_agree_with_the_metrics() -> None:
    made = full_inputs()
    assert made.evaluation is not None
    assert made.evaluation.champion_metrics is not None
    sides = (made.evaluation.champion_metrics, made.evaluation.challenger_metrics)
    rows = rows_of(made)
    missed, alarms = rows["Infected cells missed"], rows["False alarms"]
    assert [missed.champion, missed.challenger] == [str(round(1000 * m.fn / (m.fn + m.tp))) for m in sides]
    assert [alarms.champion, alarms.challenger] == [str(round(1000 * m.fp / (m.fp + m.tn))) for m in sides]


@pytest.mark.parametrize(
    ("low", "high", "change", "certainty"),
    [
        (0.017, 0.06, "17 to 60 fewer", "certain"),
        (-0.06, -0.017, "17 to 60 more", "certain"),
        (-0.015, 0.028, "28 fewer to 15 more", "uncertain"),
        (0.0, 0.02, "0 to 20 fewer", "uncertain"),
        (0.0, 0.0, "no change", "uncertain"),
        (-1.0, 0.3, "not known", ""),
        (float("-inf"), float("inf"), "not known", ""),
    ],
)
def test_a_change_is_certain_when_its_whole_interval_is(low: float, high: float, change: str, certainty: str) -> None:
    row = rows_of(with_difference(low, high))["Infected cells missed"]
    assert (row.change, row.certainty) == (change, certainty)


def test_only_a_promoted_challenger_stands_out() -> None:
    for verdict in (Verdict.PROMOTED, Verdict.KEPT, Verdict.UNDECIDED, Verdict.AWAITING_APPROVAL):
        made = full_inputs(verdict, gates=gates())
        shown = effects(made, judged_models(made))
        assert shown is not None
        assert shown.is_used == (verdict is Verdict.PROMOTED)
        assert shown.heading.startswith("Nothing changes") == (verdict in (Verdict.KEPT, Verdict.UNDECIDED))


def test_a_first_champion_has_no_change() -> None:
    made = first_champion()
    shown = effects(made, judged_models(made))
    assert shown is not None
    assert shown.champion == ""
    assert "Certain" not in shown.note
    assert not any(row.certainty for row in shown.rows)
    assert re.fullmatch(r"\d+ to \d+", shown.rows[0].change)


def test_nothing_is_promised_without_a_look() -> None:
    made = not_looked(Verdict.KEPT)
    assert effects(made, judged_models(made)) is None
    assert model_in_use(made, judged_models(made)) is None


def test_the_model_in_use_follows_the_verdict() -> None:
    kept, promoted, refused = full_inputs(Verdict.KEPT), full_inputs(), first_champion(Verdict.KEPT, ("AUC floor",))
    roles = [used[0].role for r in (kept, promoted, refused) if (used := model_in_use(r, judged_models(r)))]
    assert roles == ["champion", "challenger", "challenger"]


def test_calls_follow_from_sensitivity_specificity_and_prevalence() -> None:
    made = metrics(predictions(), "challenger", 0.44)
    rates = {
        name: Interval(value=value, low=0.8, high=1.0) for name, value in (("sensitivity", 0.92), ("specificity", 0.95))
    }
    made = made.model_copy(update=rates)
    heavy, usual, light, healthy = calls_by_prevalence(made)[1:]
    assert (heavy.infected, heavy.called, heavy.right) == (500, 935, "49%")
    assert (usual.infected, usual.called, usual.right) == (100, 587, "16%")
    assert (light.infected, light.called, light.right) == (10, 509, "2%")
    assert (healthy.infected, healthy.called, healthy.right) == (0, 500, "none")
    assert "5.2%" in limits(made)  # 0.05 / (0.05 + 0.92)
    perfect = made.model_copy(update={"specificity": Interval(value=1.0, low=0.9, high=1.0)})
    assert limits(perfect) == ""
    assert calls_by_prevalence(perfect)[-1].right == "–"


def test_nothing_is_computed_for_a_class_without_cells() -> None:
    made = one_class()
    assert made.evaluation is not None
    assert calls_by_prevalence(made.evaluation.challenger_metrics) == []
    assert limits(made.evaluation.challenger_metrics) == ""
    rows = rows_of(made)
    assert "no cells" in rows["Infected cells missed"].challenger
    assert not any(name.startswith("Found") for name in rows)


def patient(name: str, cells: int, infected: int, mistakes: int, champion: int) -> dict[str, Any]:
    called = infected + mistakes
    return {"group": name, "cells": cells, "infected": infected, "mistakes": mistakes, "champion": champion,
            "called": called, "champion_called": infected}  # fmt: skip


PATIENTS = [patient("<b>&", 100, 50, 4, 10), patient("B", 25, 0, 2, 1), patient("C", 100, 50, 3, 3)]


def test_a_dot_a_patient_shows_the_difference_with_the_area_of_its_cells() -> None:
    drawn = difference_plot(PATIENTS)
    radii = [float(r) for r in re.findall(r' r="([\d.]+)"', drawn)]
    assert len(radii) == 3
    assert radii[0] == pytest.approx(max(radii) / 2, abs=0.06)  # B comes first: a loss, a quarter of the cells
    assert "1 patient with fewer errors than the champion makes, 1 with more, 1 with as many" in drawn
    assert "&lt;b&gt;&amp;" in drawn
    assert difference_plot([]) == called_plot([], "called") == ""


def test_many_patients_have_no_names_and_no_outlier_hides_them() -> None:
    many = [patient(f"P{i}", 100, 50, 5, 6) for i in range(100)]
    drawn = difference_plot([*many, patient("tiny", 1, 1, 0, 1)])
    assert "P1" not in drawn
    assert drawn.count("<circle") == 101
    assert drawn.count('class="beyond"') == 1
    assert "+1<" in drawn


def test_healthy_patients_are_told_apart() -> None:
    drawn, words = called_plot(PATIENTS, "called"), called_words(PATIENTS, "called")
    healthy, infected = (re.search(rf'<g class="{kind}">(.*?)</g>', drawn) for kind in ("healthy", "infected"))
    assert healthy is not None
    assert infected is not None
    assert (healthy[1].count("<circle"), infected[1].count("<circle")) == (1, 2)
    assert "1 healthy patient" in words
    assert "8.0%" in words
    assert "no patient is healthy" in called_words(PATIENTS[:1], "called")
