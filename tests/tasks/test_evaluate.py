"""Evaluate: who challenges, on which bytes both are scored, and what a look at the holdout costs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infra.registry.registry import Registry
from infra.scoring.model_file import ModelFile
from tasks.cells.side_data import load_side
from tasks.context import Context
from tasks.evaluate import Contest, choose_challenger, evaluate, prepare_contest
from tests.builders import (
    NOON,
    RED,
    Prepared,
    candidate_of,
    channel_model,
    made_up_candidate,
    metrics_of,
)
from tests.tasks.conftest import Crown
from validation.digest import sha256
from validation.errors import ChampionUnusable, ModelFileInvalid, RegistryUnreachable
from validation.images.decode import decode, to_square
from validation.records import Candidate, ChampionRef, Look, Metrics, Start
from validation.statistics.metrics import Scored


@pytest.fixture
def good(context: Context, prepared: Prepared) -> Candidate:
    return candidate_of(context, prepared, channel_model(), name="fastai")


@pytest.fixture
def worse(context: Context, prepared: Prepared) -> Candidate:
    return candidate_of(context, prepared, channel_model(RED), name="keras")


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


def looks(context: Context, generation: str = "g1") -> list[Look]:
    keys = sorted(info.key for info in context.store.list(f"retraining/looks/{generation}/"))
    return [Look.model_validate_json(context.store.get(key)) for key in keys]


class TestChallenger:
    @staticmethod
    def candidate(name: str, metrics: Metrics) -> Candidate:
        return made_up_candidate(b"", name=name).model_copy(update={"validation": metrics})

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
        assert (contest.champion, contest.champion_model, contest.champion_on_validation) == (None, None, None)
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
        assert contest.champion_on_validation == worse.validation
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
        again = candidate_of(context, prepared, channel_model(centre=104.0), seed=2)
        assert not contest_of(context, prepared, registry, again).worth_a_look
        assert looks(context) == []

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
        assert contest_of(context, prepared, registry, good, start=start) == first

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
            (channel_model(input_name="pixels"), "expected images uint8"),
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
        assert looks(context) == []

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
    def test_both_are_scored_on_the_same_holdout_bytes(
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
        result = evaluate(context, contest_of(context, prepared, registry, good), prepared.split, prepared.pack)
        holdout = load_side(context, prepared.split, prepared.pack, "holdout")
        table = context.records.load_table(result.predictions)
        assert tuple(table["key"]) == holdout.keys
        assert tuple(table["patient"]) == holdout.patients
        np.testing.assert_array_equal(table["label"], holdout.labels.astype(int))
        np.testing.assert_array_equal(table["challenger"], ModelFile(channel_model()).score(holdout.images))
        np.testing.assert_array_equal(table["champion"], ModelFile(channel_model(RED)).score(holdout.images))

        assert result.champion == registry.champion()
        assert result.challenger_metrics.threshold == good.threshold
        assert result.champion_metrics is not None
        assert result.champion_metrics.threshold == worse.threshold
        assert result.challenger_metrics.cells == result.champion_metrics.cells == len(holdout.keys)
        assert result.challenger_metrics.patients == prepared.split.holdout.patients
        new, old = result.challenger_metrics.balanced_accuracy, result.champion_metrics.balanced_accuracy
        assert new
        assert old
        difference = result.differences["balanced_accuracy"]
        assert difference.value == pytest.approx(new.value - old.value)
        assert difference.low <= difference.value <= difference.high

    def test_a_first_champion_is_not_compared(
        self, context: Context, prepared: Prepared, registry: Registry, good: Candidate
    ) -> None:
        result = evaluate(context, contest_of(context, prepared, registry, good), prepared.split, prepared.pack)
        assert (result.champion, result.champion_metrics, result.differences) == (None, None, {})
        assert context.records.load_table(result.predictions)["champion"].isna().all()
        assert [look.spent for look in looks(context)] == [0]

    def test_a_champion_of_another_size_is_scored_at_its_own(
        self, context: Context, prepared: Prepared, registry: Registry, good: Candidate, crown: Crown
    ) -> None:
        model = channel_model(RED, side=24)
        champion = made_up_candidate(model, name="keras", id_="big")
        champion = champion.model_copy(update={"spec": champion.spec.model_copy(update={"side": 24})})
        context.store.put(champion.model_key, model)
        crown(champion)
        contest = contest_of(context, prepared, registry, good)
        result = evaluate(context, contest, prepared.split, prepared.pack)
        table = context.records.load_table(result.predictions)
        images = [to_square(decode(context.store.get(key), context.settings.data), 24) for key in table["key"]]
        np.testing.assert_array_equal(table["champion"], ModelFile(model).score(np.array(images)))
        assert contest.champion_on_validation is not None
        assert contest.champion_on_validation.cells == prepared.split.validation_side.cells

    def test_the_cnn_that_did_not_challenge_is_scored_for_the_report_alone(
        self, context: Context, prepared: Prepared, registry: Registry, good: Candidate, worse: Candidate
    ) -> None:
        alone = evaluate(context, contest_of(context, prepared, registry, good), prepared.split, prepared.pack)
        contest = contest_of(context, prepared, registry, worse, good)
        result = evaluate(context, contest, prepared.split, prepared.pack)
        assert (result.challenger, result.other) == (good.id, worse.id)
        holdout = load_side(context, prepared.split, prepared.pack, "holdout")
        table = context.records.load_table(result.predictions)
        np.testing.assert_array_equal(table["other"], ModelFile(channel_model(RED)).score(holdout.images))
        assert result.other_metrics is not None
        assert result.other_metrics.threshold == worse.threshold
        assert set(result.milliseconds) == {"challenger", "other"}
        assert all(value > 0 for value in result.milliseconds.values())
        # It took no look, and nothing that a gate reads is another than without it.
        assert [look.challenger for look in looks(context)] == [good.id]
        assert (result.challenger_metrics, result.differences) == (alone.challenger_metrics, alone.differences)
        assert context.records.load_table(alone.predictions)["other"].isna().all()
        assert (alone.other, alone.other_metrics) == (None, None)

    def test_one_that_cannot_be_scored_costs_the_night_nothing(
        self, context: Context, prepared: Prepared, registry: Registry, good: Candidate, worse: Candidate
    ) -> None:
        contest = contest_of(context, prepared, registry, worse, good)
        context.store.put(worse.model_key, b"no model")
        result = evaluate(context, contest, prepared.split, prepared.pack)
        assert (result.challenger, result.other, result.other_metrics) == (good.id, None, None)

    def test_a_champion_that_fails_on_the_holdout_alone_is_unusable_too(
        self,
        context: Context,
        prepared: Prepared,
        registry: Registry,
        good: Candidate,
        worse: Candidate,
        crown: Crown,
    ) -> None:
        crown(worse)
        contest = replace(
            contest_of(context, prepared, registry, good), champion_model=channel_model(centre=float("nan"))
        )
        contest = replace(contest, champion=contest.champion.model_copy(  # type: ignore[union-attr]
            update={"model_sha256": sha256(contest.champion_model or b"")}
        ))  # fmt: skip
        with pytest.raises(ChampionUnusable, match="not probabilities"):
            evaluate(context, contest, prepared.split, prepared.pack)

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
        first = evaluate(context, contest, prepared.split, prepared.pack)
        monkeypatch.setattr("tasks.evaluate._score", lambda *_: pytest.fail("scored again"))
        assert evaluate(context, contest, prepared.split, prepared.pack) == first
        assert len(looks(context)) == 1

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

        def killed(*_: object) -> Scored:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("tasks.evaluate._score", killed)
            with pytest.raises(KeyboardInterrupt):
                evaluate(context, contest, prepared.split, prepared.pack)
        (look,) = looks(context)
        assert (look.number, look.challenger, look.champion) == (1, good.id, worse.id)
        assert look.spent == pytest.approx(0.05 / 24)
        # Looking again at the same challenger is the same look.
        assert evaluate(context, contest, prepared.split, prepared.pack).look == look
        assert looks(context) == [look]

    def test_a_candidate_whose_model_file_was_swapped_is_refused(
        self, context: Context, prepared: Prepared, registry: Registry, good: Candidate
    ) -> None:
        contest = contest_of(context, prepared, registry, good)
        context.store.put(good.model_key, channel_model(centre=90))
        with pytest.raises(ModelFileInvalid, match="recorded is"):
            evaluate(context, contest, prepared.split, prepared.pack)
