"""The ledger: a look is spent before its result is known, once a pair, and never more than the budget."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from infra.store.folder import FolderStore
from infra.store.keys import look_key
from infra.store.memory import MemoryStore
from infra.store.s3 import S3Store
from tasks.context import Context
from tasks.evaluate import Contest, evaluate
from tasks.judging.ledger import read_ledger, take_look
from tests import ROOT
from tests.builders import (
    RED,
    candidate_of,
    channel_model,
    context_over,
    folder_context,
    plain_cells,
    prepare,
    with_settings,
)
from validation.digest import sha256
from validation.errors import LedgerSpent, RetrainError
from validation.records import ChampionRef, Look

pytestmark = pytest.mark.thorough


@pytest.fixture
def context(home: Path) -> Context:
    return context_over(MemoryStore(), home)


def keys(context: Context, generation: str = "g1") -> list[str]:
    return sorted(info.key for info in context.store.list(f"retraining/looks/{generation}/"))


def test_the_same_pair_looks_once(context: Context) -> None:
    first = take_look(context, "g1", "a", "champion")
    assert take_look(context, "g1", "a", "champion") == first
    assert take_look(context, "g1", "b", "champion").number == 2
    assert take_look(context, "g1", "a", "another champion").number == 3


def test_when_the_budget_is_spent_no_more_looks_are_taken(context: Context) -> None:
    context = with_settings(context, gate={"looks": 2})
    take_look(context, "g1", "first", None)
    spent = [take_look(context, "g1", name, "champion").spent for name in ("a", "b")]
    assert sum(spent) == pytest.approx(0.05)
    with pytest.raises(LedgerSpent, match="looked at 2 times, 2 are allowed") as caught:
        take_look(context, "g1", "c", "champion")
    assert "retrain holdout rotate" in caught.value.hint
    assert len(keys(context)) == 3
    # An earlier look may be repeated, and a new generation starts from zero.
    assert take_look(context, "g1", "a", "champion").number == 2
    assert take_look(context, "g2", "c", "champion").number == 1


def test_a_first_champion_spends_nothing_however_often(context: Context) -> None:
    context = with_settings(context, gate={"looks": 1})
    assert [take_look(context, "g1", name, None).spent for name in ("a", "b", "c")] == [0, 0, 0]
    take_look(context, "g1", "d", "champion")
    with pytest.raises(LedgerSpent):
        take_look(context, "g1", "e", "champion")
    assert take_look(context, "g1", "f", None).spent == 0


def test_what_looks_cost_counts_and_not_their_number_alone(context: Context) -> None:
    """Fewer looks cost more each: the setting may change within a generation, the budget stays."""
    for name in "abcdefghijklmno":
        take_look(context, "g1", name, "champion")  # 15 of 24: 0.03125 is spent
    few = with_settings(context, gate={"looks": 20, "error_budget": 0.05})
    for name in "pqrst":
        take_look(few, "g1", name, "champion")
    dear = with_settings(context, gate={"looks": 100, "error_budget": 0.0438})
    with pytest.raises(LedgerSpent, match=r"0\.0438 of the error budget"):
        take_look(dear, "g1", "u", "champion")


def test_a_damaged_look_is_spent_and_logged_and_stops_no_night(
    context: Context, told: pytest.LogCaptureFixture
) -> None:
    context = with_settings(context, gate={"looks": 3})
    take_look(context, "g1", "a", "champion")
    key = keys(context)[0]
    context.store.put(key, b'{"generation": "g1", "num')
    context.store.put("retraining/looks/g1/nonsense.json", b"")
    with pytest.raises(RetrainError, match="is damaged or of another version"):
        context.records.load_at(Look, key)
    # Its own challenger is known by the key and looks at no further cost; the next gets the next number.
    assert take_look(context, "g1", "a", "champion").number == 1
    assert take_look(context, "g1", "b", "champion").number == 2
    assert "counts as spent" in told.text
    assert sum(entry.cost(0.05 / 3) for entry in read_ledger(context, "g1")) == pytest.approx(0.05)
    with pytest.raises(LedgerSpent, match="looked at 3 times"):
        take_look(context, "g1", "c", "champion")


def test_two_nights_that_take_the_same_number_at_once_lose_no_look(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = with_settings(context, gate={"looks": 2})
    create = context.store.create

    def other_night(key: str, data: bytes) -> bool:
        look = Look.model_validate_json(data)
        if look.challenger == "mine":
            rival = look.model_copy(update={"challenger": "rival"})
            context.store.put(look_key("g1", look.number, "rival"), rival.model_dump_json().encode())
        return create(key, data)

    monkeypatch.setattr(context.store, "create", other_night)
    assert take_look(context, "g1", "mine", "champion").number == 1
    assert {json.loads(context.store.get(key))["challenger"] for key in keys(context)} == {"mine", "rival"}
    with pytest.raises(LedgerSpent, match="looked at 2 times"):
        take_look(context, "g1", "third", "champion")


def test_of_two_nights_at_the_last_look_at_most_one_takes_it(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    context = with_settings(context, gate={"looks": 1})
    create = context.store.create

    def other_night(key: str, data: bytes) -> bool:
        rival = Look.model_validate_json(data).model_copy(update={"challenger": "rival"})
        context.store.put(look_key("g1", 1, "rival"), rival.model_dump_json().encode())
        return create(key, data)

    monkeypatch.setattr(context.store, "create", other_night)
    with pytest.raises(LedgerSpent):
        take_look(context, "g1", "mine", "champion")
    assert len(keys(context)) == 2


@pytest.mark.server
def test_many_nights_at_once_on_a_bucket_lose_no_look(s3_store: S3Store, home: Path) -> None:
    context = context_over(s3_store, home)
    names = [f"challenger {number}" for number in range(12)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda name: take_look(context, "g1", name, "champion"), names))
    entries = read_ledger(context, "g1")
    assert sorted(entry.look.challenger for entry in entries if entry.look) == sorted(names)


CHILD = """
import os, sys, time
from pathlib import Path
from infra.local.files import Workspace
from infra.store.records import Records
from infra.store.folder import FolderStore
from tasks import evaluate as module
from tasks.context import Context
from tests.builders import small_settings
from validation.records import Candidate, ChampionRef, Pack, Split

home, split, pack, challenger, champion = sys.argv[1:]
store = FolderStore(Path(home) / "store")
records = Records(store)
context = Context(small_settings(Path(home), store=store.uri), store, records, Workspace(Path(home)))
old = records.load(Candidate, champion)
reference = ChampionRef(
    version="1", candidate=old.id, model="keras", model_sha256=old.model_sha256, threshold=old.threshold
)
contest = module.Contest(records.load(Candidate, challenger), reference, store.get(old.model_key), None)

def scoring(*_):
    print("scoring", flush=True)
    time.sleep(600)

module._score = scoring
module.evaluate(context, contest, records.load(Split, split), records.load(Pack, pack))
"""


@pytest.mark.usefixtures("no_expectations")
def test_a_night_killed_between_look_and_verdict_does_not_look_twice(home: Path) -> None:
    """SIGKILL of a separate process, after the look and before any score."""
    context = folder_context(home, plain_cells())
    prepared = prepare(context)
    good = candidate_of(context, prepared, channel_model(), name="fastai")
    old = candidate_of(context, prepared, channel_model(RED), name="keras")
    arguments = [str(home), prepared.split.id, prepared.pack.id, good.id, old.id]
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "scoring\n"
    child.kill()
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    (before,) = (entry.look for entry in read_ledger(context, "g1"))
    assert before is not None
    assert before.spent > 0

    assert isinstance(context.store, FolderStore)
    model = context.store.get(old.model_key)
    reference = ChampionRef(
        version="1", candidate=old.id, model="keras", model_sha256=sha256(model), threshold=old.threshold
    )
    result = evaluate(context, Contest(good, reference, model, None), prepared.split, prepared.pack)
    assert result.look == before
    assert result.differences
    assert len(keys(context)) == 1
    assert before.looked_at < datetime.now(UTC)
