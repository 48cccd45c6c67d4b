"""Evaluate: who challenges, on which bytes both are scored, and what a look at the holdout costs."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from infra.keys import look_key
from infra.registry import Registry
from infra.scoring import ModelFile
from tasks.context import Context
from tasks.evaluate import Contest, choose_challenger, evaluate, prepare_contest, take_look
from tasks.holdings import load_side
from tests.builders import (
    NOON,
    RED,
    Prepared,
    candidate_of,
    channel_model,
    made_up_candidate,
    metrics_of,
    with_settings,
)
from tests.tasks.conftest import Crown
from validation.errors import LedgerSpent, ModelFileInvalid
from validation.images import decode, to_square
from validation.metrics import Scored
from validation.records import Candidate, ChampionRef, Look, Metrics, Start


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
    def test_the_first_challenger_has_nobody_to_beat(
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

    def test_a_night_that_was_killed_after_its_promotion_goes_on_against_whom_it_began_with(
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

    def test_a_tampered_champion_stops_the_night(
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
        with pytest.raises(ModelFileInvalid, match="registered was"):
            contest_of(context, prepared, registry, good)


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

    def test_a_first_champion_is_compared_with_nobody(
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


class TestLedger:
    def test_the_same_pair_looks_once(self, context: Context) -> None:
        first = take_look(context, "g1", "a", "champion")
        assert take_look(context, "g1", "a", "champion") == first
        assert take_look(context, "g1", "b", "champion").number == 2
        assert take_look(context, "g1", "a", "another champion").number == 3

    def test_when_the_budget_is_spent_no_more_looks_are_taken(self, context: Context) -> None:
        context = with_settings(context, gate={"looks": 2})
        take_look(context, "g1", "first", None)
        spent = [take_look(context, "g1", name, "champion").spent for name in ("a", "b")]
        assert sum(spent) == pytest.approx(0.05)
        with pytest.raises(LedgerSpent, match="looked at 2 times, 2 are allowed") as caught:
            take_look(context, "g1", "c", "champion")
        assert "split.generation" in caught.value.hint
        assert len(looks(context)) == 3
        # What was looked at before may be looked at again, and a new generation begins anew.
        assert take_look(context, "g1", "a", "champion").number == 2
        assert take_look(context, "g2", "c", "champion").number == 1

    def test_a_first_champion_spends_nothing_however_often(self, context: Context) -> None:
        context = with_settings(context, gate={"looks": 1})
        assert [take_look(context, "g1", name, None).spent for name in ("a", "b", "c")] == [0, 0, 0]
        take_look(context, "g1", "d", "champion")
        with pytest.raises(LedgerSpent):
            take_look(context, "g1", "e", "champion")
        assert take_look(context, "g1", "f", None).spent == 0

    def test_two_nights_at_once_never_share_a_number(self, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
        other = Look(
            generation="g1", number=1, challenger="other", champion="champion", spent=0.1, looked_at=datetime.now(UTC)
        )
        create = context.store.create

        def slower(key: str, data: bytes) -> bool:
            if json.loads(data)["number"] == 1:
                context.store.put(look_key("g1", 1), other.model_dump_json().encode())
            return create(key, data)

        monkeypatch.setattr(context.store, "create", slower)
        assert take_look(context, "g1", "mine", "champion").number == 2
        assert looks(context)[0] == other
