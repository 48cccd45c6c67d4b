"""The earlier weights that a training may start from: of the champion's night, intact, not fitted on judging cells."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.context import Context
from tasks.models.keras.cnn import DefaultRecipe
from tasks.training.specs import train_spec
from tasks.training.warm_start import earlier_candidates
from tests.builders import (
    NOON,
    CountingStore,
    Prepared,
    candidate_of,
    channel_model,
    context_over,
    made_up_decision,
    plain_cells,
    prepare,
    with_settings,
)
from validation.records import Candidate, ChampionRef, Promotion

pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("no_expectations")]

CELLS = plain_cells(30, 2)


@pytest.fixture
def context(home: Path) -> Context:
    return context_over(CountingStore(CELLS), home)


@pytest.fixture
def prepared(context: Context) -> Prepared:
    return prepare(context)


@pytest.fixture
def trained(context: Context, prepared: Prepared) -> dict[str, Candidate]:
    return {name: candidate_of(context, prepared, channel_model(), name=name) for name in ("fastai", "keras")}


@pytest.fixture
def champion(context: Context, trained: dict[str, Candidate]) -> ChampionRef:
    """The Keras CNN of a night that trained both."""
    decision = made_up_decision().model_copy(update={"candidates": tuple(c.id for c in trained.values())})
    context.records.save(decision, decision.id)
    entry = Promotion(
        number=1, who="the night", decision=decision.id, version_before=None, version_after="1", why="first", at=NOON
    )
    context.records.save(entry, "000001")
    keras = trained["keras"]
    return ChampionRef(
        version="1", candidate=keras.id, model="keras", model_sha256=keras.model_sha256, threshold=keras.threshold
    )


def test_both_cnns_start_from_the_champions_night(
    context: Context, prepared: Prepared, trained: dict[str, Candidate], champion: ChampionRef
) -> None:
    found = earlier_candidates(context, champion, prepared.split)
    assert found == trained
    specs = {name: train_spec(context.settings, name, "split", earlier) for name, earlier in found.items()}
    assert {name: spec.start for name, spec in specs.items()} == {name: c.id for name, c in trained.items()}


def test_the_first_night_begins_with_none(context: Context, prepared: Prepared) -> None:
    assert earlier_candidates(context, None, prepared.split) == {}
    assert train_spec(context.settings, "keras", "split").start is None


def test_of_a_champion_whose_night_is_not_known_its_own_weights_are_left(
    context: Context, prepared: Prepared, trained: dict[str, Candidate], champion: ChampionRef
) -> None:
    other = champion.model_copy(update={"version": "7"})
    assert earlier_candidates(context, other, prepared.split) == {"keras": trained["keras"]}


def test_weights_of_another_network_do_not_fit(
    context: Context, prepared: Prepared, trained: dict[str, Candidate], champion: ChampionRef
) -> None:
    other = 2 * DefaultRecipe().width
    for changed in ({"keras": {"width": other}}, {"side": 32}):
        settings = with_settings(context, training=changed).settings
        assert train_spec(settings, "keras", "split", trained["keras"]).start is None
    settings = with_settings(context, training={"keras": {"learning_rate": 1e-4}}).settings
    assert train_spec(settings, "keras", "split", trained["keras"]).start == trained["keras"].id
    assert train_spec(settings, "fastai", "split", trained["keras"]).start is None


def test_weights_that_are_gone_or_damaged_are_left_out(
    context: Context,
    prepared: Prepared,
    trained: dict[str, Candidate],
    champion: ChampionRef,
    caplog: pytest.LogCaptureFixture,
) -> None:
    context.store.delete(trained["fastai"].weights_key)
    context.store.put(trained["keras"].weights_key, b"cut short")
    with caplog.at_level("INFO"):
        assert earlier_candidates(context, champion, prepared.split) == {}
    assert "they are no longer kept" in caplog.text
    assert "they are damaged" in caplog.text


def test_weights_fitted_on_a_judging_cell_are_left_out(
    context: Context,
    prepared: Prepared,
    trained: dict[str, Candidate],
    champion: ChampionRef,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In another generation by settings, patients change sides."""
    dealt_again = with_settings(context, split={"generation": "another"})
    split = prepare(dealt_again).split
    with caplog.at_level("INFO"):
        assert earlier_candidates(dealt_again, champion, split) == {}
    assert "cells that tonight's models are chosen or judged on" in caplog.text
