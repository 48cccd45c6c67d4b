"""Decide: every verdict, from evidence; and the same decision for the same evidence."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from infra.registry.registry import Registry
from infra.store.keys import SYNTHETIC_MARK
from tasks.choose import Contest, prepare_contest
from tasks.context import Context
from tasks.decide import Evidence, decide
from tasks.evaluate import NoLook, evaluate
from tests.builders import (
    NOON,
    RED,
    Prepared,
    candidate_of,
    channel_member,
    made_up_candidate,
    metrics_of,
    with_settings,
)
from tests.tasks.conftest import Crown
from validation.records import (
    Candidate,
    ChampionRef,
    Check,
    Decision,
    Evaluation,
    Interval,
    Look,
    Night,
    Snapshot,
    Spread,
    Start,
    Verdict,
)

CHAMPION = ChampionRef(version="3", candidate="old", model="keras", model_sha256="0" * 64, threshold=0.5, since=NOON)
CHALLENGER = made_up_candidate(b"model")
NEXT = Snapshot(
    id="next", parent=None, table="", objects=0, bytes=0, by_class={}, patients=0, without_patient=0, new=0, gone=0,
    created_at=NOON,
)  # fmt: skip


def contest(champion: ChampionRef | None = CHAMPION, *, on_tuning: float = 0.9) -> Contest:
    tuning = {"challenger": CHALLENGER.tuning} | ({"champion": metrics_of(on_tuning)} if champion else {})
    return Contest(CHALLENGER, champion, tuning=tuning)


def difference(value: float, half: float) -> dict[str, Interval]:
    interval = Interval(value=value, low=value - half, high=value + half)
    return {"balanced_accuracy": interval, "sensitivity": interval, "specificity": interval}


def evaluation(value: float = 0.95, differences: dict[str, Interval] | None = None, **metrics: Any) -> Evaluation:
    champion = CHAMPION if differences else None
    return Evaluation(
        id=f"{value} {differences} {metrics}",
        split="split",
        challenger=CHALLENGER.id,
        challenger_sha256=CHALLENGER.model_sha256,
        challenger_threshold=CHALLENGER.threshold,
        champion=champion,
        look=Look(number=1, challenger=CHALLENGER.model_sha256, champion=None, spent=0, looked_at=NOON),
        predictions="key",
        judged="digest",
        counts={},
        challenger_metrics=metrics_of(value, **metrics),
        champion_metrics=metrics_of(0.9) if champion else None,
        differences=differences or {},
    )


@pytest.fixture
def evidence(prepared: Prepared) -> Evidence:
    return Evidence(prepared.snapshot, prepared.validation, prepared.split, (CHALLENGER,), {}, contest())


@pytest.mark.parametrize(
    ("change", "verdict", "facts"),
    [
        ({"contest": contest(None), "evaluation": evaluation()}, Verdict.PROMOTED, "First champion|floor"),
        ({"contest": contest(None), "evaluation": evaluation(0.7)}, Verdict.KEPT, "floor|AUC|0.7000|0.9000"),
        ({"contest": contest(None), "evaluation": evaluation(patients=2)}, Verdict.UNDECIDED, "2 patients|least 3"),
        ({"evaluation": evaluation(differences=difference(0.03, 0.01))}, Verdict.PROMOTED, "better than the champion"),
        (
            {"evaluation": evaluation(differences=difference(0.03, 0.04))},
            Verdict.UNDECIDED,
            "further patients",
        ),
        (
            {"evaluation": evaluation(differences=difference(-0.03, 0.01))},
            Verdict.KEPT,
            "champion stays|balanced accuracy|3.00 points lower|4.00 points lower|level 0.0021",
        ),
        ({"evaluation": evaluation(0.7, difference(0.03, 0.01))}, Verdict.KEPT, "champion stays|AUC|0.7000|0.9000"),
        ({"evaluation": evaluation(0.95, difference(0.03, 0.01), patients=2)}, Verdict.UNDECIDED, "2 patients|least 3"),
        (
            {"contest": contest(on_tuning=0.97)},
            Verdict.KEPT,
            "champion stays|tuning patients|0.9500|0.9700|balanced accuracy|no look was taken",
        ),
        (
            {"no_look": NoLook("24 looks were taken this year")},
            Verdict.UNDECIDED,
            "24 looks were taken this year",
        ),
        (
            {"contest": replace(contest(), champion_problem="no ONNX model")},
            Verdict.CHAMPION_UNUSABLE,
            "version 3|no ONNX model|not count as beaten|no look was taken",
        ),
    ],
)
def test_a_verdict_and_its_reason(
    change: dict[str, Any], verdict: Verdict, facts: str, context: Context, evidence: Evidence
) -> None:
    decision = decide(context, replace(evidence, **change))
    assert decision.verdict is verdict
    for fact in facts.split("|"):
        assert fact in decision.sentence
    assert context.records.load(Decision, decision.id) == decision
    assert (decision.further_patients is not None) == (verdict is Verdict.UNDECIDED and "evaluation" in change)
    assert bool(decision.gates) == ("evaluation" in change)


def test_every_gate_is_stored_with_its_numbers_in_words(context: Context, evidence: Evidence) -> None:
    compared = difference(0.03, 0.01) | {"sensitivity": Interval(value=0.004, low=-0.02, high=0.028)}
    lacking = {name: interval for name, interval in compared.items() if name != "specificity"}
    decision = decide(context, replace(evidence, evaluation=evaluation(differences=lacking)))
    sentences = {gate.name: gate.sentence for gate in decision.gates}
    assert len(sentences) == 9
    for fact in ("0.40 points higher", "2.00 points lower", "1.00 points lower", "level 0.0021"):
        assert fact in sentences["sensitivity not worse"]
    assert "cannot be compared" in sentences["specificity not worse"]
    assert "10 patients" in sentences["judging patients"]
    assert "0.9500" in sentences["AUC floor"]
    assert "level" not in sentences["AUC floor"]


def test_a_promotion_that_waits_for_a_person_names_the_time_and_the_command(
    context: Context, evidence: Evidence
) -> None:
    person = with_settings(context, promotion={"approval": "person", "approval_hours": 5})
    decision = decide(person, replace(evidence, evaluation=evaluation(differences=difference(0.03, 0.01))))
    assert decision.verdict is Verdict.AWAITING_APPROVAL
    for fact in ("better than the champion", "person", "5 hours", "retrain approve"):
        assert fact in decision.sentence


def test_invalid_data_is_named_by_every_check_that_failed(context: Context, prepared: Prepared) -> None:
    def check(name: str, severity: Any, passed: bool) -> Check:
        return Check(name=name, expected="at least 50", observed="3", passed=passed, severity=severity)

    checks = (
        check("Parasitized cells", "invalid", False),
        check("Uninfected cells", "invalid", True),
        check("class ratio", "invalid", False),
        check("rejected", "warn", False),
    )
    validation = prepared.validation.model_copy(update={"checks": checks})
    decision = decide(context, Evidence(prepared.snapshot, validation))
    assert decision.verdict is Verdict.INVALID_DATA
    for fact in ("must not be trained on", "Parasitized cells: 3, expected at least 50", "class ratio: 3"):
        assert fact in decision.sentence
    assert "rejected" not in decision.sentence
    assert "Uninfected" not in decision.sentence
    assert (decision.challenger, decision.split, decision.candidates) == (None, None, ())


def test_a_decision_names_the_evidence_it_rests_on(context: Context, evidence: Evidence) -> None:
    judged = evaluation(differences=difference(0.03, 0.01))
    decision = decide(context, replace(evidence, evaluation=judged, failed_trainings={"keras": "killed"}))
    assert decision.snapshot == evidence.snapshot.id
    assert decision.validation == evidence.validation.id
    assert decision.candidates == (CHALLENGER.id,)
    assert (decision.challenger, decision.evaluation) == (CHALLENGER.id, judged.id)
    assert decision.champion_before == CHAMPION
    assert decision.failed_trainings == {"keras": "killed"}
    assert not decision.synthetic


def test_the_same_evidence_is_the_same_decision(context: Context, evidence: Evidence) -> None:
    judged = replace(evidence, evaluation=evaluation(differences=difference(0.03, 0.01)))
    first = decide(context, judged)
    # When the champion was promoted is known from a registry, and another registry may give another time.
    later = replace(judged, contest=contest(CHAMPION.model_copy(update={"since": None})))
    assert decide(context, judged) == decide(context, later) == first
    others = [
        replace(judged, contest=contest(CHAMPION.model_copy(update={"version": "4"}))),
        replace(judged, evaluation=evaluation(differences=difference(0.04, 0.01))),
        replace(judged, candidates=(CHALLENGER, CHALLENGER)),
        replace(judged, evaluation=None, no_look=NoLook("spent")),
    ]
    ids = {decide(context, other).id for other in others}
    ids.add(decide(with_settings(context, gate={"looks": 3}), judged).id)
    assert len(ids | {first.id}) == 6


def test_an_unusable_champion_is_reported_with_the_last_good_decision(context: Context, evidence: Evidence) -> None:
    broken = replace(evidence, contest=replace(contest(), champion_problem="no ONNX model"))
    first = decide(context, broken)
    assert first.champion_problem == "no ONNX model"
    assert first.champion_before == CHAMPION
    assert (first.evaluation, first.gates, first.detectable_difference) == (None, (), None)
    assert "last decision" not in first.sentence

    good = decide(context, replace(evidence, evaluation=evaluation(differences=difference(0.03, 0.01))))
    for id_, decision, day in (("1", good, 1), ("2", first, 2)):
        night = Night(
            id=id_, verdict=decision.verdict, sentence="", decision=decision.id, champion_before="3",
            champion_after="3", challenger=None, challenger_model=None, metrics={}, images={}, seconds={}, report=None,
            synthetic=False, started_at=NOON, finished_at=NOON + timedelta(days=day),
        )  # fmt: skip
        context.records.save(night, id_)
    otherwise = replace(broken, contest=replace(contest(), champion_problem="its file is gone"))
    second = decide(context, otherwise)
    assert second.id != first.id
    assert good.id in second.sentence
    # The champion failed later, on the judging patients, and the sentence says so.
    late = decide(context, replace(otherwise, contest_broke_off=True, snapshot=NEXT))
    assert "nothing was compared" in late.sentence


def test_the_detectable_difference_is_recorded_with_an_evaluation(context: Context, evidence: Evidence) -> None:
    metrics = ("balanced_accuracy", "sensitivity", "specificity")
    known = {name: Spread(error=0.004, effective_patients=20.0) for name in metrics}
    judged = evaluation(differences=difference(0.03, 0.01)).model_copy(update={"spreads": known})
    smallest = decide(context, replace(evidence, evaluation=judged)).detectable_difference
    assert smallest is not None
    # Alone, superiority would show 0.004 * (3.256 + 0.842) (Student's quantile at 0.05 / 24, and 80% power).
    assert 0.016 < smallest < 0.03
    assert decide(context, replace(evidence, contest=contest(on_tuning=0.97))).detectable_difference is None


def test_synthetic_cells_are_recorded(context: Context, evidence: Evidence) -> None:
    context.store.put(SYNTHETIC_MARK, b"{}")
    assert decide(context, replace(evidence, evaluation=evaluation(differences=difference(0.03, 0.01)))).synthetic


def test_a_night_that_trained_nothing_has_nothing_to_decide(context: Context, prepared: Prepared) -> None:
    with pytest.raises(ValueError, match="nothing to decide"):
        decide(context, Evidence(prepared.snapshot, prepared.validation, prepared.split))


@pytest.mark.thorough
class TestRealModels:
    """The whole judgement over real model files: one reads the channel that shows the class, one another channel."""

    @staticmethod
    def night(context: Context, prepared: Prepared, registry: Registry, *candidates: Candidate) -> Decision:
        start = Start(id="night", champion=registry.champion(), started_at=NOON)
        contest = prepare_contest(context, candidates, start, registry, prepared.split, prepared.pack)
        judged = None
        if contest.worth_a_look:
            judged = evaluate(context, contest, prepared.split, prepared.pack, registry)
        evidence = Evidence(prepared.snapshot, prepared.validation, prepared.split, candidates, {}, contest)
        if isinstance(judged, NoLook):
            return decide(context, replace(evidence, no_look=judged))
        return decide(context, replace(evidence, evaluation=judged))

    def test_a_better_model_is_promoted_and_a_worse_one_kept_out(
        self, context: Context, prepared: Prepared, registry: Registry, crown: Crown
    ) -> None:
        worse = candidate_of(context, prepared, channel_member(RED), name="keras")
        good = candidate_of(context, prepared, channel_member(), name="fastai")
        first = self.night(context, prepared, registry, worse)
        assert first.verdict is Verdict.KEPT
        for fact in ("No champion yet", "fails a floor"):
            assert fact in first.sentence
        crown(worse)
        second = self.night(context, prepared, registry, worse, good)
        assert (second.verdict, second.challenger) == (Verdict.PROMOTED, good.id)
        assert all(gate.passed for gate in second.gates)
        crown(good)
        other = candidate_of(context, prepared, channel_member(RED), name="keras", seed=2)
        assert self.night(context, prepared, registry, other).verdict is Verdict.KEPT
