"""The gates: what is promoted, kept and left undecided, exactly at the bounds too."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from validation.gate import GateResult, beats_on_tuning, could_pass, judge, judge_first, level_of_look
from validation.records import Gate, Interval, Metrics, Spread, Verdict
from validation.rules import GateRules
from validation.statistics.metrics import Scored, compare, spreads, summarise
from validation.statistics.paired_tests import MOST

RULES = GateRules()
FLOORS = ("auc", "sensitivity", "specificity")
steady = settings(deadline=None, derandomize=True, max_examples=200)


def interval(value: float, half: float = 0.02) -> Interval:
    return Interval(value=value, low=value - half, high=value + half)


def measured(
    *,
    patients: int = 30,
    infected: int = 500,
    clear: int = 600,
    auc: float | None = 0.98,
    sensitivity: float | None = 0.94,
    specificity: float | None = 0.96,
) -> Metrics:
    """A challenger's metrics on the judging patients; the counts of right calls play no part in a gate."""
    values = {"auc": auc, "sensitivity": sensitivity, "specificity": specificity}
    return Metrics(
        cells=infected + clear, patients=patients, threshold=0.5, tp=infected, fn=0, tn=clear, fp=0,
        accuracy=interval(0.95), balanced_accuracy=interval(0.95), log_loss=0.2,
        **{name: None if value is None else interval(value) for name, value in values.items()},
    )  # fmt: skip


def gains(
    balanced: tuple[float, float] = (0.02, 0.005),
    sensitivity: tuple[float, float] = (0.03, 0.001),
    specificity: tuple[float, float] = (0.01, -0.004),
) -> dict[str, Interval]:
    """Challenger minus champion: value and one-sided lower bound of each."""
    given_ends = {"balanced_accuracy": balanced, "sensitivity": sensitivity, "specificity": specificity}
    return {name: Interval(value=v, low=low, high=2 * v - low) for name, (v, low) in given_ends.items()}


def failed(judgement: GateResult) -> list[str]:
    return [gate.name for gate in judgement.gates if not gate.passed]


def gate(judgement: GateResult, name: str) -> Gate:
    return next(gate for gate in judgement.gates if gate.name == name)


# --- against a champion ------------------------------------------------------------------------------------------


def test_a_challenger_that_is_clearly_better_is_promoted() -> None:
    judgement = judge(measured(), gains(), RULES)
    assert judgement.verdict is Verdict.PROMOTED
    assert failed(judgement) == []
    assert judgement.further_patients is None
    assert len(judgement.gates) == 9


def test_a_challenger_that_looks_better_on_thin_evidence_is_undecided() -> None:
    judgement = judge(measured(), gains(balanced=(0.02, -0.01)), RULES)
    assert judgement.verdict is Verdict.UNDECIDED
    assert failed(judgement) == ["superior balanced accuracy"]
    assert judgement.decisive is None
    assert judgement.further_patients is not None


@pytest.mark.parametrize("value", [0.0, -1e-9, -0.05])
def test_a_challenger_that_is_not_better_leaves_the_champion(value: float) -> None:
    judgement = judge(measured(), gains(balanced=(value, value - 0.02)), RULES)
    assert judgement.verdict is Verdict.KEPT
    assert judgement.further_patients is None
    assert judgement.decisive == gate(judgement, "superior balanced accuracy")
    assert judgement.decisive.value == value


@pytest.mark.parametrize("metric", ["sensitivity", "specificity"])
def test_a_gain_does_not_make_up_for_a_loss_beyond_the_margin(metric: str) -> None:
    lost: dict[str, Any] = {metric: (-0.011, -0.03)}
    judgement = judge(measured(), gains(balanced=(0.05, 0.03), **lost), RULES)
    assert judgement.verdict is Verdict.KEPT
    assert failed(judgement) == [f"{metric} not worse"]
    assert judgement.decisive == gate(judgement, f"{metric} not worse")
    assert judgement.decisive.value == -0.011


@pytest.mark.parametrize("metric", ["sensitivity", "specificity"])
def test_a_loss_that_may_be_within_the_margin_is_undecided(metric: str) -> None:
    maybe: dict[str, Any] = {metric: (-0.002, -0.03)}
    judgement = judge(measured(), gains(**maybe), RULES)
    assert judgement.verdict is Verdict.UNDECIDED
    assert failed(judgement) == [f"{metric} not worse"]
    assert judgement.further_patients is not None


@pytest.mark.parametrize(
    ("floor", "value"),
    [("auc", 0.899), ("sensitivity", 0.799), ("specificity", 0.799), ("auc", None)],
)
def test_a_challenger_below_a_floor_is_kept_out_however_much_better_it_is(floor: str, value: float | None) -> None:
    bad: dict[str, Any] = {floor: value}
    judgement = judge(measured(**bad), gains(balanced=(0.2, 0.1)), RULES)
    assert judgement.verdict is Verdict.KEPT
    assert [name.lower() for name in failed(judgement)] == [f"{floor} floor"]
    assert judgement.decisive is not None
    assert (judgement.decisive.name, judgement.decisive.value) == (failed(judgement)[0], value)


@pytest.mark.parametrize("floor", FLOORS)
def test_a_floor_that_only_the_value_reaches_is_undecided(floor: str) -> None:
    bound = getattr(RULES, f"min_{floor}")
    thin = measured().model_copy(update={floor: Interval(value=bound + 0.02, low=bound - 0.02, high=bound + 0.06)})
    for judgement in (judge(thin, gains(), RULES), judge_first(thin, RULES)):
        assert judgement.verdict is Verdict.UNDECIDED
        assert [name.lower() for name in failed(judgement)] == [f"{floor} floor"]
        # The distance of the bound from the value must halve: four times the patients, and one to be above it.
        assert judgement.further_patients == 3 * 30 + 1


def test_a_value_on_its_floor_is_not_below_it_and_no_number_of_patients_lifts_its_bound() -> None:
    on = measured().model_copy(update={"auc": Interval(value=0.9, low=0.88, high=0.92)})
    judgement = judge_first(on, RULES)
    assert judgement.verdict is Verdict.UNDECIDED
    assert judgement.further_patients == MOST


@pytest.mark.parametrize(
    ("few", "lacking", "further"),
    [
        ({"patients": 7}, "judging patients", 1),
        ({"patients": 2}, "judging patients", 6),
        ({"infected": 24}, "judging Parasitized cells", 2),  # 30 patients brought 24: 31.25 would bring 25
        ({"clear": 10}, "judging Uninfected cells", 45),
        ({"infected": 0, "sensitivity": None, "auc": None}, "judging Parasitized cells", None),
        ({"patients": 0, "infected": 0, "clear": 0}, "judging patients", None),
    ],
)
def test_too_little_data_is_undecided_whatever_it_seems_to_say(
    few: dict[str, Any], lacking: str, further: int | None
) -> None:
    for differences in (gains(), gains(balanced=(-0.3, -0.4)), {}):
        judgement = judge(measured(**few), differences, RULES)
        assert judgement.verdict is Verdict.UNDECIDED
        assert judgement.decisive == gate(judgement, lacking)
        assert not judgement.decisive.passed
        # How many patients bring a class that was never seen cannot be estimated.
        assert judgement.further_patients == further


def test_a_metric_that_cannot_be_compared_fails() -> None:
    differences = gains()
    del differences["sensitivity"]
    judgement = judge(measured(), differences, RULES)
    assert judgement.verdict is Verdict.KEPT
    assert failed(judgement) == ["sensitivity not worse"]
    assert judgement.decisive == gate(judgement, "sensitivity not worse")
    assert judgement.decisive.value is None


@pytest.mark.parametrize(
    ("metric", "bound"), [("balanced", 0.0), ("sensitivity", -RULES.sensitivity_margin), ("specificity", -0.01)]
)
def test_a_lower_bound_must_lie_above_and_not_on_its_bound(metric: str, bound: float) -> None:
    on: dict[str, Any] = {metric: (0.02, bound)}
    above: dict[str, Any] = {metric: (0.02, math.nextafter(bound, 1))}
    judgement = judge(measured(), gains(**on), RULES)
    assert judgement.verdict is Verdict.UNDECIDED
    assert judgement.further_patients == 1
    assert judge(measured(), gains(**above), RULES).verdict is Verdict.PROMOTED


def test_floors_and_minima_are_met_by_reaching_them() -> None:
    just = measured(
        patients=RULES.min_patients, infected=RULES.min_cells_per_class, clear=RULES.min_cells_per_class,
    ).model_copy(update={
        name: Interval(value=0.99, low=getattr(RULES, f"min_{name}"), high=1.0) for name in FLOORS
    })  # fmt: skip
    assert judge(just, gains(), RULES).verdict is Verdict.PROMOTED
    assert judge_first(just, RULES).verdict is Verdict.PROMOTED


def test_the_margins_are_those_of_the_rules() -> None:
    differences = gains(sensitivity=(0.0, -0.02), specificity=(0.0, -0.04))
    wide = GateRules(sensitivity_margin=0.03, specificity_margin=0.05)
    assert judge(measured(), differences, wide).verdict is Verdict.PROMOTED
    swapped = GateRules(sensitivity_margin=0.05, specificity_margin=0.03)
    assert failed(judge(measured(), differences, swapped)) == ["specificity not worse"]
    none = GateRules(sensitivity_margin=0, specificity_margin=0)
    # With no margin at all, not worse has to be better.
    assert judge(measured(), differences, none).verdict is Verdict.KEPT


def test_each_comparison_has_its_value_its_bound_and_the_level() -> None:
    rules = GateRules(error_budget=0.06, looks=12, sensitivity_margin=0.015)
    compared = gate(judge(measured(), gains(sensitivity=(0.004, -0.02)), rules), "sensitivity not worse")
    assert (compared.value, compared.low, compared.bound, compared.level) == (0.004, -0.02, -0.015, 0.005)
    assert not compared.passed


# --- against the reference ---------------------------------------------------------------------------------------


def test_a_loss_to_the_reference_counts_like_one_to_the_champion() -> None:
    fine, lost, unclear = gains(), gains(sensitivity=(-0.012, -0.02)), gains(specificity=(0.0, -0.02))
    passed = judge(measured(), gains(), RULES, reference=fine)
    assert passed.verdict is Verdict.PROMOTED
    assert [g.name for g in passed.gates[6:8]] == [
        "sensitivity not worse than the reference", "specificity not worse than the reference",
    ]  # fmt: skip
    kept = judge(measured(), gains(), RULES, reference=lost)
    assert (kept.verdict, kept.decisive) == (Verdict.KEPT, gate(kept, "sensitivity not worse than the reference"))
    thin = judge(measured(), gains(), RULES, reference=unclear)
    assert (thin.verdict, failed(thin)) == (Verdict.UNDECIDED, ["specificity not worse than the reference"])
    # Twice the distance of the margin: four times the patients.
    assert thin.further_patients == pytest.approx(3 * 30, abs=1)


def test_a_reference_need_not_be_beaten() -> None:
    far_better = gains(balanced=(-0.05, -0.06), sensitivity=(0.0, -0.009), specificity=(-0.004, -0.008))
    assert judge(measured(), gains(), RULES, reference=far_better).verdict is Verdict.PROMOTED
    assert len(judge(measured(), gains(), RULES, reference={}).gates) == 9, "the reference is the champion itself"


def test_a_reference_that_cannot_be_compared_fails() -> None:
    judgement = judge(measured(), gains(), RULES, reference={"specificity": gains()["specificity"]})
    assert judgement.verdict is Verdict.KEPT
    assert failed(judgement) == ["sensitivity not worse than the reference"]


# --- further patients --------------------------------------------------------------------------------------------


@steady
@given(st.floats(1e-3, 0.2), st.floats(1e-3, 0.3), st.integers(8, 400))
def test_that_many_further_patients_at_the_same_difference_would_decide_it(
    value: float, error: float, patients: int
) -> None:
    assume(value - error <= 0 and patients * (error / value) ** 2 < MOST)

    def with_patients(total: int) -> GateResult:
        # The error of a mean over patients shrinks with the square root of their number.
        low = value - error * math.sqrt(patients / total)
        return judge(measured(patients=total), gains(balanced=(value, low)), RULES)

    tonight = with_patients(patients)
    assert tonight.verdict is Verdict.UNDECIDED
    further = tonight.further_patients
    assert further is not None
    # One more than the formula absorbs the rounding of a bound that is met to the last digit.
    assert with_patients(patients + further + 1).verdict is Verdict.PROMOTED
    if further > 2:
        assert with_patients(patients + further - 2).verdict is Verdict.UNDECIDED


def test_a_bound_that_would_only_be_met_takes_one_patient_more() -> None:
    # Half the error takes four times the patients, and puts the lower bound exactly on 0: not above it.
    value, error = 1 / 64, 2 / 64
    assert judge(measured(patients=32), gains(balanced=(value, value - error)), RULES).further_patients == 3 * 32 + 1


def test_the_slowest_of_the_open_questions_counts() -> None:
    alone = judge(measured(), gains(balanced=(0.02, -0.02)), RULES).further_patients
    slower = judge(measured(), gains(specificity=(0.0, -0.04)), RULES).further_patients
    both = judge(measured(), gains(balanced=(0.02, -0.02), specificity=(0.0, -0.04)), RULES)
    # Twice the distance takes four times the patients, four times the distance sixteen times.
    assert alone == pytest.approx(3 * 30, abs=1)
    assert slower == pytest.approx(15 * 30, abs=1)
    assert both.verdict is Verdict.UNDECIDED
    assert both.further_patients == slower


KNOWN = {
    "balanced_accuracy": Spread(error=0.002, effective_patients=50),
    "sensitivity": Spread(error=0.003, effective_patients=20),
    "specificity": Spread(error=0.002, effective_patients=60),
}


def test_what_could_be_found_is_what_passes_the_whole_gate() -> None:
    def found(known: dict[str, Spread], reference: dict[str, Interval] | None = None) -> float:
        smallest = judge(measured(), gains(), RULES, known, reference).detectable_difference
        assert smallest is not None
        return smallest

    alone = found(KNOWN)
    assert 0.002 * (2.86 + 0.84) < alone < 0.012, "superiority alone needs 3.7 standard errors"
    # Not being worse is now the hard part: 8.2 effective patients are the least.
    assert found(KNOWN | {"sensitivity": Spread(error=0.01, effective_patients=20)}) > 2 * alone
    few = KNOWN | {"specificity": Spread(error=0.002, effective_patients=8)}
    assert judge(measured(), gains(), RULES, few).detectable_difference is None
    assert judge(measured(), gains(), RULES).detectable_difference is None, "without spreads nothing is known"
    # The challenger is 3 points better than the champion and as good as the reference: the champion is 3 points worse.
    level_with_it = gains(sensitivity=(0.0, -0.009), specificity=(0.01, -0.004))
    assert found(KNOWN, level_with_it) > alone + 0.02


def test_with_spreads_too_the_slowest_question_counts() -> None:
    thin = gains(balanced=(0.004, -0.002), sensitivity=(0.001, -0.02))
    judgement = judge(measured(), thin, RULES, KNOWN | {"sensitivity": Spread(error=0.006, effective_patients=20)})
    only = judge(measured(), gains(balanced=(0.004, -0.002)), RULES, KNOWN)
    assert judgement.verdict is only.verdict is Verdict.UNDECIDED
    assert judgement.further_patients is not None
    assert only.further_patients is not None
    assert judgement.further_patients > only.further_patients > 0


def test_too_few_patients_need_as_many_as_the_comparisons_do() -> None:
    thin = judge(measured(patients=7), gains(balanced=(0.02, -0.02)), RULES)
    assert thin.verdict is Verdict.UNDECIDED
    assert thin.further_patients == pytest.approx(3 * 7, abs=1)


# --- without a champion ------------------------------------------------------------------------------------------


def test_a_first_model_that_meets_the_floors_is_promoted_with_nothing_compared() -> None:
    judgement = judge_first(measured(), RULES)
    assert judgement.verdict is Verdict.PROMOTED
    assert judgement.decisive is None
    assert [g.name for g in judgement.gates if g.level is not None] == []
    assert len(judgement.gates) == 6


@pytest.mark.parametrize(
    ("bad", "floor"),
    [
        ({"auc": 0.85}, ("AUC floor", 0.85, 0.9)),
        ({"sensitivity": 0.7999}, ("sensitivity floor", 0.7999, 0.8)),
        ({"specificity": 0.1}, ("specificity floor", 0.1, 0.8)),
        ({"auc": None}, ("AUC floor", None, 0.9)),
    ],
)
def test_a_first_model_below_a_floor_is_not_promoted(
    bad: dict[str, Any], floor: tuple[str, float | None, float]
) -> None:
    judgement = judge_first(measured(**bad), RULES)
    assert judgement.verdict is Verdict.KEPT
    assert judgement.decisive is not None
    assert (judgement.decisive.name, judgement.decisive.value, judgement.decisive.bound) == floor


def test_a_first_model_on_too_little_data_is_undecided_even_below_a_floor() -> None:
    judgement = judge_first(measured(patients=4, auc=0.5), RULES)
    assert judgement.verdict is Verdict.UNDECIDED
    assert failed(judgement) == ["judging patients", "AUC floor"]
    assert judgement.decisive is not None
    assert (judgement.decisive.name, judgement.decisive.value, judgement.decisive.bound) == ("judging patients", 4, 8)
    assert judgement.further_patients == 4


# --- looks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("budget", "looks"), [(0.05, 24), (0.1, 10), (0.05, 1)])
def test_all_looks_together_spend_the_budget_and_no_more(budget: float, looks: int) -> None:
    level = level_of_look(GateRules(error_budget=budget, looks=looks))
    assert looks * level == pytest.approx(budget)


@pytest.mark.parametrize(
    ("new", "old", "worth"),
    [(0.951, 0.95, True), (0.95, 0.95, False), (0.949, 0.95, False), (0.95, None, True), (None, 0.95, False),
     (None, None, False)],
)  # fmt: skip
def test_only_a_challenger_that_wins_on_the_tuning_patients_is_worth_a_look(
    new: float | None, old: float | None, worth: bool
) -> None:
    def on_tuning(value: float | None) -> Metrics:
        balanced = interval(value) if value is not None else None
        return measured().model_copy(update={"balanced_accuracy": balanced})

    assert beats_on_tuning(on_tuning(new), on_tuning(old)) is worth


# --- whether a look could pass -----------------------------------------------------------------------------------


def pair(patients: int, differing: int, *, sizes: int = 40, largest: int = 40) -> tuple[Scored, Scored]:
    """Two models that differ on one infected and one clear cell of each of the first ``differing`` patients."""
    counts = np.full(patients, sizes)
    counts[0] = largest
    owner = np.repeat(np.arange(patients), counts)
    position = np.concatenate([np.arange(n) for n in counts])
    labels = position % 2 == 0
    old = np.where(labels, 0.9, 0.1)
    new = np.where((position < 2) & (owner < differing), 1 - old, old)
    return Scored(labels, new, owner, 0.5), Scored(labels, old, owner, 0.5)


@pytest.mark.parametrize(("differing", "verdict", "further"), [(9, Verdict.PROMOTED, None), (8, Verdict.UNDECIDED, 5)])
def test_too_few_patients_with_a_disagreement_are_not_worth_a_look(
    differing: int, verdict: Verdict, further: int | None
) -> None:
    judgement = could_pass(*pair(40, differing), RULES)
    assert judgement.verdict is verdict
    assert judgement.further_patients == further
    if further:
        assert failed(judgement) == ["patients with a disagreement"]
        assert (judgement.decisive.value, judgement.decisive.bound) == (8, 9)  # type: ignore[union-attr]


def test_models_that_agree_everywhere_cannot_be_told_apart_by_any_number_of_patients() -> None:
    judgement = could_pass(*pair(40, 0), RULES)
    assert judgement.verdict is Verdict.UNDECIDED
    assert judgement.further_patients is None


def test_too_few_effective_patients_are_not_worth_a_look() -> None:
    judgement = could_pass(*pair(40, 12, sizes=400, largest=20_000), RULES)
    assert judgement.verdict is Verdict.UNDECIDED
    assert failed(judgement) == [f"effective patients, {m} not worse" for m in ("sensitivity", "specificity")]
    assert judgement.further_patients is not None
    assert judgement.further_patients > 40
    assert judgement.decisive is not None
    assert judgement.decisive.value is not None
    assert judgement.decisive.value < judgement.decisive.bound == pytest.approx(8.2, abs=0.05)


def test_the_reference_must_be_possible_to_meet_too() -> None:
    new, old = pair(40, 20)
    judgement = could_pass(new, old, RULES, reference=old)
    assert judgement.verdict is Verdict.PROMOTED
    assert [g.name for g in judgement.gates][-2:] == [
        "effective patients, sensitivity not worse than the reference",
        "effective patients, specificity not worse than the reference",
    ]


def test_no_patients_are_too_few() -> None:
    nothing = Scored(np.zeros(0, bool), np.zeros(0), np.zeros(0, np.int64), 0.5)
    judgement = could_pass(nothing, nothing, RULES)
    assert (judgement.verdict, judgement.further_patients) == (Verdict.UNDECIDED, None)
    assert failed(judgement)[0] == "judging patients"


def random_pair(seed: int) -> tuple[Scored, Scored]:
    rng = np.random.default_rng(seed)
    patients = int(rng.integers(6, 30))
    owner = np.repeat(np.arange(patients), np.maximum(2, rng.lognormal(2, 1.2, patients)).astype(int))
    labels = rng.random(len(owner)) < 0.5
    old = labels ^ (rng.random(len(owner)) < 0.15)
    new = old ^ ((rng.random(len(owner)) < 0.4) & (rng.random(patients) < 0.6)[owner])
    return Scored(labels, new.astype(float), owner, 0.5), Scored(labels, old.astype(float), owner, 0.5)


@steady
@given(st.integers(0, 10_000))
def test_whether_a_look_is_taken_does_not_depend_on_the_labels_it_would_reveal(seed: int) -> None:
    new, old = random_pair(seed)
    rng = np.random.default_rng(seed)
    differ = new.probabilities != old.probabilities
    other = new.labels ^ (differ & (rng.random(len(differ)) < 0.5))
    assert could_pass(new, old, RULES) == could_pass(
        Scored(other, new.probabilities, new.patients, 0.5), Scored(other, old.probabilities, old.patients, 0.5), RULES
    )


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.integers(0, 10_000), st.floats(0, 1))
def test_a_look_that_is_not_taken_could_not_have_passed(seed: int, right: float) -> None:
    """However the labels turn out: the best case, and any share of it."""
    new, old = random_pair(seed)
    could = could_pass(new, old, RULES).verdict is Verdict.PROMOTED
    calls, rng = new.probabilities >= 0.5, np.random.default_rng(seed)
    differ = calls != (old.probabilities >= 0.5)
    labels = np.where(differ & (rng.random(len(calls)) < max(right, 0.5)), calls, new.labels)
    new, old = (Scored(labels, one.probabilities, one.patients, 0.5) for one in (new, old))
    differences = compare(new, old, resamples=1_000, level=level_of_look(RULES))
    names = {"balanced_accuracy", "sensitivity", "specificity"}
    assume(names <= set(differences))
    low = {name: differences[name].low for name in names}
    passes = low["balanced_accuracy"] > 0 and low["sensitivity"] > -0.01 and low["specificity"] > -0.01
    assert could or not passes or new.count < RULES.min_patients or min(labels.sum(), (~labels).sum()) < 25


# --- from scores to a verdict ------------------------------------------------------------------------------------


def model(noise: float, *, patients: int = 40, seed: int = 0) -> Scored:
    """Both classes in every patient; the same cells are hard for every model."""
    rng = np.random.default_rng(11)
    owner = np.repeat(np.arange(patients), 60)
    labels = np.arange(len(owner)) % 2 == 0
    logit = (2 * labels - 1) * 2.0 + 0.3 * rng.normal(0, 1, patients)[owner] + 0.5 * rng.normal(0, 1, len(owner))
    logit = logit + noise * np.random.default_rng(seed).normal(0, 1, len(owner))
    return Scored(labels, 1 / (1 + np.exp(-logit)), owner, 0.5)


@pytest.mark.parametrize(
    ("challenger", "champion", "verdict"),
    [
        (model(0.4), model(1.6, seed=1), Verdict.PROMOTED),
        (model(1.6), model(0.4, seed=1), Verdict.KEPT),
        (model(0.9), model(0.9), Verdict.KEPT),
        (model(0.9, patients=9), model(1.0, patients=9, seed=1), Verdict.UNDECIDED),
        (model(0.4, patients=7), model(1.6, patients=7, seed=1), Verdict.UNDECIDED),
    ],
    ids=["far better", "far worse", "the same", "hardly better", "too few patients"],
)
def test_scores_lead_to_the_verdict_that_they_deserve(challenger: Scored, champion: Scored, verdict: Verdict) -> None:
    differences = compare(challenger, champion, resamples=RULES.resamples, level=level_of_look(RULES))
    judgement = judge(summarise(challenger), differences, RULES, spreads(challenger, champion), differences)
    assert judgement.verdict is verdict
