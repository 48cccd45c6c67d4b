"""Evaluate: who challenges, on which bytes both are scored, and what a look costs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.registry.registry import Registry
from infra.scoring.model_file import ModelFile
from infra.store.keys import record_key, table_key
from infra.store.records import table_bytes
from tasks import evaluate as module
from tasks.cells.cell_data import load_cells
from tasks.cells.scoring import ScoredFile, score_cells
from tasks.champion.history import ChampionChange, append_change
from tasks.choose import Contest, Rival, choose_challenger, prepare_contest
from tasks.context import Context
from tasks.evaluate import NoLook, evaluate
from tasks.judging.evidence import is_sealed
from tasks.judging.ledger import read_ledger
from tasks.models.onnx_file import combine as combine_files
from tests.builders import (
    NOON,
    RED,
    Prepared,
    candidate_of,
    channel_member,
    channel_model,
    made_up_candidate,
    made_up_decision,
    metrics_of,
    single_network,
    with_settings,
)
from tests.tasks.conftest import Crown
from validation.errors import ChampionUnusable, ModelFileInvalid, RegistryUnreachable
from validation.images.decode import decode, to_square
from validation.patients import FOLDS, fold_of
from validation.records import Candidate, ChampionRef, Evaluation, Look, Metrics, Split, Start


@pytest.fixture
def good(context: Context, prepared: Prepared) -> Candidate:
    return candidate_of(context, prepared, channel_member(), name="fastai")


@pytest.fixture
def worse(context: Context, prepared: Prepared) -> Candidate:
    return candidate_of(context, prepared, channel_member(RED), name="keras")


def started(champion: ChampionRef | None = None) -> Start:
    return Start(id="night", champion=champion, started_at=NOON)


def contest_of(
    context: Context,
    prepared: Prepared,
    registry: Registry,
    *candidates: Candidate,
    start: Start | None = None,
) -> Contest:
    return prepare_contest(
        context, candidates, start or started(registry.champion()), registry, prepared.split, prepared.pack
    )


def judged(context: Context, contest: Contest, prepared: Prepared, registry: Registry) -> Evaluation:
    result = evaluate(context, contest, prepared.split, prepared.pack, registry)
    assert isinstance(result, Evaluation), result
    return result


def looks(context: Context, registry: Registry) -> list[Look]:
    return [entry.look for entry in read_ledger(context, registry) if entry.look]


class TestChallenger:
    @staticmethod
    def candidate(name: str, metrics: Metrics) -> Candidate:
        return made_up_candidate(b"", name=name).model_copy(update={"tuning": metrics})

    def test_the_better_balanced_accuracy_challenges(self) -> None:
        first, second = self.candidate("fastai", metrics_of(0.94)), self.candidate("keras", metrics_of(0.95))
        assert choose_challenger([first, second]) is choose_challenger([second, first]) is second

    def test_a_tie_goes_to_the_lower_log_loss_and_then_by_name(self) -> None:
        sure = metrics_of(0.95).model_copy(update={"log_loss": 0.1})
        unsure = metrics_of(0.95).model_copy(update={"log_loss": 0.2})
        first, second = self.candidate("fastai", unsure), self.candidate("keras", sure)
        assert choose_challenger([first, second]) is second
        first, second = self.candidate("fastai", sure), self.candidate("keras", sure)
        assert choose_challenger([second, first]) is first

    def test_one_without_a_balanced_accuracy_never_beats_one_with(self) -> None:
        none = metrics_of(0.99).model_copy(update={"balanced_accuracy": None})
        first, second = self.candidate("fastai", none), self.candidate("keras", metrics_of(0.5))
        assert choose_challenger([first, second]) is second


class TestContest:
    def test_the_first_challenger_has_no_champion_to_beat(
        self, context: Context, prepared: Prepared, registry: Registry, good: Candidate, worse: Candidate
    ) -> None:
        contest = contest_of(context, prepared, registry, worse, good)
        assert contest.challenger == good
        assert (contest.champion, contest.rivals, contest.tuning) == (None, {}, {"challenger": good.tuning})
        assert contest.worth_a_look

    def test_a_better_challenger_is_worth_a_look(
        self,
        context: Context,
        prepared: Prepared,
        registry: Registry,
        good: Candidate,
        worse: Candidate,
        crown: Crown,
    ) -> None:
        champion = crown(worse)
        contest = contest_of(context, prepared, registry, good)
        assert contest.champion == champion
        # Scored again tonight: the same cells at the same frozen threshold give what its training saw.
        assert contest.tuning == {"challenger": good.tuning, "champion": worse.tuning}
        assert contest.worth_a_look

    def test_a_worse_or_equal_one_is_not_and_costs_no_look(
        self,
        context: Context,
        prepared: Prepared,
        registry: Registry,
        good: Candidate,
        worse: Candidate,
        crown: Crown,
    ) -> None:
        crown(good)
        assert not contest_of(context, prepared, registry, worse).worth_a_look
        again = candidate_of(context, prepared, channel_member(centre=104.0), seed=2)
        assert not contest_of(context, prepared, registry, again).worth_a_look
        assert looks(context, registry) == []

    def test_a_night_killed_after_its_promotion_resumes_against_the_champion_it_started_with(
        self,
        context: Context,
        prepared: Prepared,
        registry: Registry,
        good: Candidate,
        worse: Candidate,
        crown: Crown,
    ) -> None:
        before = crown(worse)
        start = started(before)
        first = contest_of(context, prepared, registry, good, start=start)
        crown(good)
        again = contest_of(context, prepared, registry, good, start=start)
        assert again.champion == first.champion == before
        assert (again.challenger, again.tuning) == (first.challenger, first.tuning)

    def test_so_does_the_first_night_of_all(
        self, context: Context, prepared: Prepared, registry: Registry, good: Candidate, crown: Crown
    ) -> None:
        crown(good)
        assert contest_of(context, prepared, registry, good, start=started(None)).champion is None

    def test_a_tampered_champion_is_unusable_and_not_beaten(
        self,
        context: Context,
        prepared: Prepared,
        registry: Registry,
        good: Candidate,
        worse: Candidate,
        crown: Crown,
        home: Path,
    ) -> None:
        crown(worse)
        (file,) = (home / "mlflow-artifacts").rglob("*.onnx")
        file.write_bytes(channel_model())
        contest = contest_of(context, prepared, registry, good)
        assert "registered was" in contest.champion_problem
        assert not contest.worth_a_look
        assert contest.champion == registry.champion()

    def test_so_is_one_whose_file_is_gone_from_the_registry(
        self,
        context: Context,
        prepared: Prepared,
        registry: Registry,
        good: Candidate,
        worse: Candidate,
        crown: Crown,
        told: pytest.LogCaptureFixture,
    ) -> None:
        crown(worse)
        shutil.rmtree(context.settings.home / "mlflow-artifacts")
        contest = contest_of(context, prepared, registry, good)
        assert contest.champion_problem
        assert not contest.worth_a_look
        assert [record.levelname for record in told.records if "cannot be used" in record.message] == ["ERROR"]

    @pytest.mark.parametrize(
        ("model", "problem"),
        [
            (channel_model(centre=float("nan")), "scores are not probabilities"),
            (channel_member(), "expected images uint8"),
        ],
        ids=["NaN", "another contract"],
    )
    def test_so_is_one_that_answers_nonsense(
        self,
        model: bytes,
        problem: str,
        context: Context,
        prepared: Prepared,
        registry: Registry,
        good: Candidate,
        crown: Crown,
    ) -> None:
        broken = made_up_candidate(model, name="keras", id_="broken")
        context.store.put(broken.model_key, model)
        crown(broken)
        contest = contest_of(context, prepared, registry, good)
        assert problem in contest.champion_problem
        assert not contest.worth_a_look
        assert looks(context, registry) == []

    def test_a_registry_that_is_away_is_no_champion_that_is_broken(
        self,
        context: Context,
        prepared: Prepared,
        registry: Registry,
        good: Candidate,
        worse: Candidate,
        crown: Crown,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        start = started(crown(worse))
        answers = [registry.champion()]

        def away(*_: object) -> object:
            if answers:
                return answers.pop()
            raise RegistryUnreachable("away")

        monkeypatch.setattr(registry, "champion", away)
        monkeypatch.setattr(registry, "model_bytes", away)
        with pytest.raises(RegistryUnreachable):
            contest_of(context, prepared, registry, good, start=start)


class TestEvaluation:
    def test_both_are_scored_on_the_same_bytes(
        self,
        context: Context,
        prepared: Prepared,
        registry: Registry,
        good: Candidate,
        worse: Candidate,
        crown: Crown,
    ) -> None:
        crown(worse)
        # The registry's file is what counts: the candidate's own may be long gone.
        context.store.objects.pop(worse.model_key)  # type: ignore[attr-defined]
        result = judged(context, contest_of(context, prepared, registry, good), prepared, registry)
        cells = load_cells(context, prepared.split, prepared.pack).judged_by(range(FOLDS))
        table = context.records.load_table(result.predictions)
        assert list(table["key"]) == list(cells.keys)
        assert list(table["patient"]) == list(cells.patients)
        np.testing.assert_array_equal(table["label"], cells.labels.astype(int))
        np.testing.assert_array_equal(table["challenger"], ModelFile(channel_model()).score(cells.images[:]))
        np.testing.assert_array_equal(table["champion"], ModelFile(channel_model(RED)).score(cells.images[:]))

        assert result.champion == registry.champion()
        assert result.challenger_metrics.threshold == good.threshold
        assert result.champion_metrics is not None
        assert result.champion_metrics.threshold == worse.threshold
        assert result.challenger_metrics.cells == result.champion_metrics.cells == len(cells.keys)
        assert result.challenger_metrics.patients == prepared.split.judging.patients == 60
        new, old = result.challenger_metrics.balanced_accuracy, result.champion_metrics.balanced_accuracy
        assert new
        assert old
        difference = result.differences["balanced_accuracy"]
        assert difference.value == pytest.approx(new.value - old.value)
        assert difference.low <= difference.value <= difference.high

    def test_a_first_champion_is_not_compared(
        self, context: Context, prepared: Prepared, registry: Registry, good: Candidate
    ) -> None:
        result = judged(context, contest_of(context, prepared, registry, good), prepared, registry)
        assert (result.champion, result.champion_metrics, result.differences) == (None, None, {})
        assert context.records.load_table(result.predictions)["champion"].isna().all()
        assert [look.spent for look in looks(context, registry)] == [0]

    def test_a_champion_of_another_size_is_scored_at_its_own(
        self, context: Context, prepared: Prepared, registry: Registry, good: Candidate, crown: Crown
    ) -> None:
        model = channel_model(RED, side=24)
        champion = made_up_candidate(model, name="keras", id_="big")
        champion = champion.model_copy(update={"side": 24})
        context.store.put(champion.model_key, model)
        crown(champion)
        contest = contest_of(context, prepared, registry, good)
        result = judged(context, contest, prepared, registry)
        table = context.records.load_table(result.predictions)
        images = [to_square(decode(context.store.get(key), context.settings.data), 24) for key in table["key"]]
        np.testing.assert_array_equal(table["champion"], ModelFile(model).score(np.array(images)))
        assert contest.tuning["champion"].cells == good.tuning.cells

    def test_the_cnn_that_did_not_challenge_is_scored_for_the_report_alone(
        self, context: Context, prepared: Prepared, registry: Registry, good: Candidate, worse: Candidate
    ) -> None:
        alone = judged(context, contest_of(context, prepared, registry, good), prepared, registry)
        contest = contest_of(context, prepared, registry, worse, good)
        result = judged(context, contest, prepared, registry)
        assert (result.challenger, result.other) == (good.id, worse.id)
        cells = load_cells(context, prepared.split, prepared.pack).judged_by(range(FOLDS))
        table = context.records.load_table(result.predictions)
        np.testing.assert_array_equal(table["other"], ModelFile(channel_model(RED)).score(cells.images[:]))
        assert result.other_metrics is not None
        assert result.other_metrics.threshold == worse.threshold
        assert set(result.milliseconds) == {"challenger", "other"}
        assert all(value > 0 for value in result.milliseconds.values())
        # It took no look, and nothing that a gate reads is another than without it.
        assert [look.challenger for look in looks(context, registry)] == [good.model_sha256]
        assert (result.challenger_metrics, result.differences) == (alone.challenger_metrics, alone.differences)
        assert context.records.load_table(alone.predictions)["other"].isna().all()
        assert (alone.other, alone.other_metrics) == (None, None)

    def test_one_that_cannot_be_scored_costs_the_night_nothing(
        self, context: Context, prepared: Prepared, registry: Registry, good: Candidate, worse: Candidate
    ) -> None:
        contest = contest_of(context, prepared, registry, worse, good)
        context.store.put(worse.model_key, b"no model")
        result = judged(context, contest, prepared, registry)
        assert (result.challenger, result.other, result.other_metrics) == (good.id, None, None)

    def test_a_champion_that_fails_on_the_judging_patients_alone_is_unusable_too(
        self, context: Context, prepared: Prepared, registry: Registry, good: Candidate, worse: Candidate, crown: Crown
    ) -> None:
        crown(worse)
        contest = contest_of(context, prepared, registry, good)
        broken = Rival(contest.rivals["champion"].version, ModelFile(channel_model(centre=float("nan"))))
        with pytest.raises(ChampionUnusable, match="not probabilities"):
            judged(context, replace(contest, rivals={"champion": broken}), prepared, registry)

    def test_what_was_evaluated_is_not_scored_again(
        self,
        context: Context,
        prepared: Prepared,
        registry: Registry,
        good: Candidate,
        worse: Candidate,
        crown: Crown,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        crown(worse)
        contest = contest_of(context, prepared, registry, good)
        first = judged(context, contest, prepared, registry)
        monkeypatch.setattr("tasks.evaluate.score_cells", lambda *_: pytest.fail("scored again"))
        assert judged(context, contest, prepared, registry) == first
        assert len(looks(context, registry)) == 1

    def test_a_look_is_in_the_ledger_before_its_result_is_known(
        self,
        context: Context,
        prepared: Prepared,
        registry: Registry,
        good: Candidate,
        worse: Candidate,
        crown: Crown,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        crown(worse)
        contest = contest_of(context, prepared, registry, good)

        def killed(*_: object) -> Metrics:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("tasks.evaluate.summarise", killed)
            with pytest.raises(KeyboardInterrupt):
                judged(context, contest, prepared, registry)
        (look,) = looks(context, registry)
        assert (look.number, look.challenger, look.champion) == (
            1,
            good.model_sha256,
            worse.model_sha256,
        )
        assert look.spent == pytest.approx(0.05 / 24)
        # Looking again at the same challenger is the same look.
        assert judged(context, contest, prepared, registry).look == look
        assert looks(context, registry) == [look]

    def test_a_candidate_whose_model_file_was_swapped_is_refused(
        self, context: Context, prepared: Prepared, registry: Registry, good: Candidate
    ) -> None:
        contest = contest_of(context, prepared, registry, good)
        context.store.put(good.model_key, channel_model(centre=90))
        with pytest.raises(ModelFileInvalid, match="recorded is"):
            judged(context, contest, prepared, registry)

    def test_each_patient_is_judged_by_the_column_of_its_fold(
        self, context: Context, prepared: Prepared, registry: Registry
    ) -> None:
        members = [channel_member(centre=90.0 + 5 * fold) for fold in range(FOLDS)]
        model = combine_files(list(enumerate(members)))
        different = made_up_candidate(model, id_="different")
        context.store.put(different.model_key, model)
        result = judged(context, contest_of(context, prepared, registry, different), prepared, registry)
        table = context.records.load_table(result.predictions)
        assert list(table["fold"]) == [fold_of(patient) for patient in table["patient"]]
        cells = load_cells(context, prepared.split, prepared.pack).judged_by(range(FOLDS))
        columns = ModelFile(model).score_members(cells.images[:])
        np.testing.assert_array_equal(table["challenger"], columns[np.arange(len(cells)), cells.folds])
        assert len(np.unique(columns[0])) == FOLDS

    def test_where_nothing_could_pass_no_look_is_taken(
        self, context: Context, prepared: Prepared, registry: Registry, good: Candidate, crown: Crown
    ) -> None:
        # Calls differ nowhere: no labels could make one of the two better.
        crown(candidate_of(context, prepared, channel_member(centre=104.9), name="keras"))
        result = evaluate(
            context, contest_of(context, prepared, registry, good), prepared.split, prepared.pack, registry
        )
        assert isinstance(result, NoLook)
        assert result.best_case is not None
        assert [gate.name for gate in result.best_case.gates if not gate.passed] == ["patients with a disagreement"]
        assert looks(context, registry) == []

    def test_a_missing_member_costs_its_patients(
        self, context: Context, prepared: Prepared, registry: Registry, worse: Candidate, crown: Crown
    ) -> None:
        crown(worse)
        model = channel_model(folds=(0, 1, 3, 4))
        four = made_up_candidate(model, id_="four")
        four = four.model_copy(update={"members": tuple(m for m in four.members if m.spec.member != 2)})
        context.store.put(four.model_key, model)
        result = judged(context, contest_of(context, prepared, registry, four), prepared, registry)
        assert 2 not in set(context.records.load_table(result.predictions)["fold"])
        lost = prepared.split.folds[2].patients
        assert result.challenger_metrics.patients == prepared.split.judging.patients - lost
        assert f"{lost} of 60 patients do not judge: the challenger has 4 of 5 members" in result.unjudged

    def test_small_losses_are_measured_against_the_first_champion_of_the_line_too(
        self, context: Context, prepared: Prepared, registry: Registry, good: Candidate, worse: Candidate
    ) -> None:
        middle = candidate_of(context, prepared, channel_member(RED, centre=115.0), seed=3)
        for number, candidate in enumerate((worse, middle), start=1):
            decision = made_up_decision(f"{number}" * 24)
            version = registry.register(candidate, context.store.get(candidate.model_key), decision)
            change = ChampionChange("promoted", "a test", decision.id, registry.champion(), version, "why", "")
            append_change(context, registry, change)
        contest = contest_of(context, prepared, registry, good)
        assert {role: rival.version.candidate for role, rival in contest.rivals.items()} == {
            "champion": middle.id,
            "reference": worse.id,
        }
        result = judged(context, contest, prepared, registry)
        assert result.reference == contest.rivals["reference"].version
        table = context.records.load_table(result.predictions)
        assert not table["reference"].isna().any()
        assert result.reference_differences["balanced_accuracy"].value > 0.05
        named = with_settings(context, gate={"reference": "2"})
        assert set(contest_of(named, prepared, registry, good).rivals) == {"champion"}


class TestChampionWithoutMembers:
    """A champion of 0.1: a single network, which may be judged only by patients that it has not seen."""

    @pytest.fixture
    def seen(self, prepared: Prepared, context: Context) -> list[str]:
        return sorted(set(context.records.load_table(prepared.split.table)["patient"]))[:30]

    @pytest.fixture
    def old(self, context: Context, registry: Registry, prepared: Prepared, seen: list[str]) -> ChampionRef:
        model = single_network(RED)
        candidate = made_up_candidate(model, name="keras", id_="a" * 24)
        context.store.put(candidate.model_key, model)
        table = context.records.load_table(prepared.split.table)
        table["side"] = np.where(table["patient"].isin(seen), "train", "holdout")
        rows = table_bytes(table[["key", "sha256", "pixels", "patient", "side"]])
        context.store.put(table_key(Split.kind, "5" * 24, "rows"), rows)
        context.store.put(
            record_key("candidates", candidate.id),
            json.dumps({"id": candidate.id, "spec": {"split": "5" * 24}}).encode(),
        )
        version = registry.register(candidate, model, made_up_decision("old"))
        registry.set_champion(version.version)
        return version

    def test_it_is_compared_on_the_patients_that_it_has_not_seen(
        self,
        context: Context,
        prepared: Prepared,
        registry: Registry,
        good: Candidate,
        old: ChampionRef,
        seen: list[str],
    ) -> None:
        contest = contest_of(context, prepared, registry, good)
        assert contest.champion == old
        assert contest.tuning["champion"].cells == contest.tuning["challenger"].cells < good.tuning.cells
        result = judged(context, contest, prepared, registry)
        table = context.records.load_table(result.predictions)
        assert set(table["patient"]) == set(context.records.load_table(prepared.split.table)["patient"]) - set(seen)
        assert "30 of 60 patients do not judge: the champion, version 1, has no members" in result.unjudged

    def test_without_its_records_nothing_is_compared(
        self, context: Context, prepared: Prepared, registry: Registry, good: Candidate, old: ChampionRef
    ) -> None:
        context.store.delete(record_key("candidates", old.candidate))
        contest = contest_of(context, prepared, registry, good)
        result = evaluate(context, contest, prepared.split, prepared.pack, registry)
        assert isinstance(result, NoLook)
        assert looks(context, registry) == []


def test_of_two_machines_that_evaluate_at_once_the_result_of_one_counts(
    context: Context,
    prepared: Prepared,
    registry: Registry,
    good: Candidate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another processor scores the same file a last bit otherwise: both would have a right to the record's name."""
    contest = contest_of(context, prepared, registry, good)
    plain, made = score_cells, list[Evaluation]()

    def slightly(*arguments: Any) -> ScoredFile:
        scored = plain(*arguments)
        probabilities = np.nextafter(scored.scored.probabilities, 1.0)
        return replace(scored, scored=replace(scored.scored, probabilities=probabilities))

    def late(*arguments: Any) -> ScoredFile:
        """The other machine evaluates while this one scores."""
        scored = plain(*arguments)
        monkeypatch.setattr(module, "score_cells", slightly)
        made.append(judged(context, contest, prepared, registry))
        return scored

    monkeypatch.setattr(module, "score_cells", late)
    second = judged(context, contest, prepared, registry)
    assert made == [second]
    assert context.records.find_whole(Evaluation, second.id) == second
    # What is sealed and not stored (it was killed in between, or has not come to it) is not waited for.
    context.store.delete(record_key(Evaluation.kind, second.id))
    monkeypatch.setattr(module, "score_cells", plain)
    third = judged(context, contest, prepared, registry)
    assert third.id != second.id
    assert (third.challenger_metrics.tp, third.look) == (second.challenger_metrics.tp, second.look)
    assert context.records.find_whole(Evaluation, third.id) == third
    assert judged(context, contest, prepared, registry).id == third.id
    assert is_sealed(registry, third)
