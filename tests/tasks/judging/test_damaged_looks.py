"""A damaged look in the ledger counts as spent, is named, and stops nothing: night, report, status, pruning."""

from __future__ import annotations

import pytest
from tasks.commands.rotate_holdout import holdout_status

from flows import retrain
from infra.registry.registry import Registry
from infra.store.keys import report_key
from infra.store.memory import MemoryStore
from tasks.context import Context
from tasks.judging.ledger import read_ledger
from tasks.pruning.prune import prune
from tasks.training.specs import train_spec
from tests.builders import (
    GREEN,
    RED,
    CountingStore,
    channel_model,
    leave_finished_training,
    made_up_decision,
    plain_cells,
    prepare,
    with_settings,
)
from validation.errors import StoreUnreachable
from validation.records import Exhibits, Night, Verdict

pytestmark = pytest.mark.thorough

GATE = {"min_auc": 0.0, "min_sensitivity": 0.0, "min_specificity": 0.0, "error_budget": 0.4, "looks": 8}
LEDGER = "retraining/looks/g1/"


@pytest.fixture
def two_nights(
    context: Context, registry: Registry, monkeypatch: pytest.MonkeyPatch, tried_here: None
) -> tuple[Context, Night]:
    """A first champion; then three damaged looks; then a night that takes a look."""
    for name in [name for name in vars(retrain) if name.endswith("_task")]:
        monkeypatch.setattr(retrain, name, getattr(retrain, name).fn)
    monkeypatch.setattr(retrain, "publish_task", lambda *_: None)  # it needs Prefect's server
    context = with_settings(context, gate=GATE)
    a_night(context, RED)
    whole = next(context.store.get(entry.key) for entry in read_ledger(context, "g1"))
    context.store.put(f"{LEDGER}0002-cut.json", whole[:40])
    context.store.put(f"{LEDGER}0003-text.json", b"\xff not JSON")
    context.store.put(f"{LEDGER}0004-other.json", made_up_decision().model_dump_json().encode())
    for key, data in plain_cells(2, 4, seed=2, first=200).items():
        context.store.put(key, data)
    return context, a_night(context, GREEN)


def a_night(context: Context, channel: int) -> Night:
    prepared = prepare(context, Registry(context.settings).champion())
    for name, centre in (("fastai", 105.0), ("keras", 104.0)):
        spec = train_spec(context.settings, name, prepared.split.id)
        leave_finished_training(context, spec, channel_model(channel, centre=centre))
    return retrain.run_night(context)


def test_damaged_looks_are_spent_and_named_and_stop_nothing(
    two_nights: tuple[Context, Night], told: pytest.LogCaptureFixture
) -> None:
    context, night = two_nights
    assert night.verdict in (Verdict.PROMOTED, Verdict.UNDECIDED)
    damaged = [f"{LEDGER}{name}.json" for name in ("0002-cut", "0003-text", "0004-other")]
    logged = "".join(record.getMessage() for record in told.get_records("setup"))
    assert all(key in logged for key in damaged)

    exhibits = context.records.load(Exhibits, night.decision or "")
    assert [look.number for look in exhibits.ledger] == [1, 2, 3, 4, 5]
    assert [look.spent for look in exhibits.ledger] == pytest.approx([0, 0.05, 0.05, 0.05, 0.05])
    page = context.store.get(report_key(night.decision or "")).decode()
    assert "The ledger: 0.2000 of 0.4000 spent, 4 of 8 looks" in page
    assert page.count("<code>damaged") == 6
    assert all(any(key in line for line in exhibits.left_out) for key in damaged)

    status = holdout_status(context)
    assert (status["looks_taken"], status["looks_damaged"], status["looks_left"]) == (4, 3, 4)
    assert status["error_budget_spent"] == pytest.approx(0.2)

    pruned = prune(context, Registry(context.settings))
    assert pruned.problems == []
    assert all(context.store.exists(key) for key in damaged)


class DeafStore(CountingStore):
    """A store that gives out no look, and may not answer at all."""

    gone = False

    def get(self, key: str) -> bytes:
        if "/looks/" in key:
            raise StoreUnreachable("permission denied")
        return super().get(key)

    def check(self) -> None:
        if self.gone:
            raise StoreUnreachable("no route to host")


def test_an_unreadable_look_is_spent_and_a_store_that_is_gone_ends_the_night(context: Context) -> None:
    store = DeafStore({f"{LEDGER}0001-a.json": b"{}"})
    context = Context(context.settings, store, type(context.records)(store), context.workspace)
    assert isinstance(store, MemoryStore)
    (entry,) = read_ledger(context, "g1")
    assert (entry.number, entry.look, entry.cost(0.05)) == (1, None, 0.05)
    store.gone = True
    with pytest.raises(StoreUnreachable):
        read_ledger(context, "g1")
