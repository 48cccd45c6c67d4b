"""Damaged records: what can be made again is made again by the next night, and is as it was; what cannot is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows import retrain
from flows.night import night_id
from infra.registry.registry import Registry
from infra.store.folder import FolderStore
from infra.store.keys import ORIGINS, record_key
from tasks.commands.describe_champion import describe_champion, describe_history
from tasks.context import Context
from tasks.nights import find_night, nights
from tasks.pruning.prune import prune
from tasks.pull import pull
from tasks.report import report
from tasks.reporting.index import build_site
from tests.builders import RED, channel_member, folder_context, leave_finished_trainings, plain_cells, prepare
from tests.stages import plain_stages
from validation.errors import RetrainError
from validation.records import Candidate, Night, Split, Start, Verdict

pytestmark = pytest.mark.thorough

# Nothing of these depends on when it was made.
TIMES = ("created_at", "decided_at", "started_at", "finished_at", "at", "seconds", "memory_mb", "milliseconds")
KINDS = (
    *("snapshots", "validations", "splits", "packs", "members", "candidates", "evaluations", "decisions", "reports"),
    *("nights", "starts"),
)


@pytest.fixture(autouse=True)
def stages_are_plain_functions(monkeypatch: pytest.MonkeyPatch, no_expectations: None) -> None:
    """Outside a flow a Prefect task would start a server; the plain functions do the same."""
    plain_stages(monkeypatch)


@pytest.fixture
def context(home: Path, empty_registry: Path) -> Context:
    home.mkdir()
    (home / "mlflow.db").write_bytes(empty_registry.read_bytes())
    gate = {"min_auc": 0.0, "min_sensitivity": 0.0, "min_specificity": 0.0}
    return folder_context(home, plain_cells(), gate=gate)


def trained(context: Context) -> Night:
    """A night whose trainings have ended."""
    start = context.records.find(Start, night_id(context, pull(context)))
    prepared = prepare(context, start.champion if start else Registry(context.settings).champion())
    for name, centre in (("fastai", 105.0), ("keras", 104.0)):
        leave_finished_trainings(context, name, prepared.split.id, channel_member(RED, centre=centre))
    return retrain.run_night(context)


def keys(context: Context, prefix: str, suffix: str = ".json") -> list[str]:
    """The keys of a kind, without the origins, which are one of their own."""
    found = [info.key for info in context.store.list(f"retraining/{prefix}/") if info.key.endswith(suffix)]
    return [key for key in found if prefix.endswith("origins") or not key.startswith(ORIGINS)]


def timeless(value: object) -> object:
    if isinstance(value, dict):
        return {name: timeless(item) for name, item in value.items() if name not in TIMES}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def contents(context: Context) -> dict[str, object]:
    """All records, without times, and the predictions and origins, byte by byte."""
    found = {key: timeless(json.loads(context.store.get(key))) for kind in KINDS for key in keys(context, kind)}
    tables = (*keys(context, "evaluations", ".parquet"), *keys(context, "splits", ".parquet"))
    return {**found, **{key: context.store.get(key) for key in tables}}


def test_what_a_night_left_is_made_again_when_it_is_damaged(context: Context, caplog: pytest.LogCaptureFixture) -> None:
    first = trained(context)
    assert (first.verdict, first.champion_after) == (Verdict.PROMOTED, "1")
    whole = contents(context)
    assert isinstance(context.store, FolderStore)
    broken = [(kind, suffix) for kind in KINDS for suffix in (".json", ".parquet") if keys(context, kind, suffix)]
    assert len(broken) >= len(KINDS) + 4
    for kind, suffix in broken:
        # A candidate that is whole needs no members.
        damaged = keys(context, kind, suffix) + (keys(context, "candidates") if kind == "members" else [])
        for key in damaged:
            data = context.store.get(key)
            context.store.put(key, data[: len(data) // 2])
        if kind != "nights":  # or it would be over, and its stages would not be asked
            context.store.delete(record_key("nights", first.id))
        caplog.clear()
        again = trained(context)
        assert all(Path(key).name.partition(".")[0] in caplog.text for key in damaged), (kind, suffix)
        assert again.champion_after == "1"
        assert (again.verdict, again.decision) == (first.verdict, first.decision), kind
        found = contents(context)
        # Without a start, what is prepared above is for the champion of now, and is there too.
        assert {key: found.get(key) for key in whole} == whole, (kind, suffix)
        assert found.keys() == whole.keys() or kind == "starts"
    # The first promotion: one look, one entry and its proposal.
    assert (len(keys(context, "looks")), len(keys(context, "history"))) == (1, 2)
    assert retrain.run_night(context).verdict is Verdict.NOTHING_NEW


def test_tables_in_parts_are_made_again_as_they_were(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.store.records.WORTH_PARTS", 0)
    first = trained(context)
    whole = contents(context)
    broken = (("snapshots", ".parts"), ("validations", ".parts"), ("splits", ".parts"), ("parts", ".parquet"))
    tables = {key: context.store.get(key) for kind, suffix in broken for key in keys(context, kind, suffix)}
    assert len(tables) == 8
    for kind, suffix in broken:
        for key in keys(context, kind, suffix):
            context.store.put(key, tables[key][: len(tables[key]) // 2])
        context.store.delete(record_key("nights", first.id))
        assert trained(context).decision == first.decision
        found = contents(context)
        assert {key: found.get(key) for key in whole} == whole, kind
        assert {key: context.store.get(key) for key in tables} == tables, kind


def test_a_night_with_nothing_new_makes_its_damaged_records_again(context: Context) -> None:
    first = trained(context)
    for kind in ("decisions", "validations"):
        for key in keys(context, kind):
            context.store.put(key, b"{")
        (context.workspace.reports / f"{first.decision}.html").unlink()
        assert trained(context).decision == first.decision
        assert report(context, first).is_file()
    assert retrain.run_night(context).verdict is Verdict.NOTHING_NEW


def test_a_damaged_old_night_fails_no_listing_and_no_later_night(context: Context) -> None:
    registry = Registry(context.settings)
    first = trained(context)
    for key, data in plain_cells(6, 4, seed=2, first=200).items():
        context.store.put(key, data)
    for kind in KINDS:
        for suffix in (".json", ".parquet"):
            for key in keys(context, kind, suffix):
                context.store.put(key, context.store.get(key)[:20])
    assert nights(context) == []
    build_site(context)
    assert describe_champion(context, registry)["version"] == "1"
    assert [row["to"] for row in describe_history(context, registry)] == ["1"]
    second = trained(context)
    assert second.decision not in (None, first.decision)
    assert find_night(context, "latest").id == second.id
    build_site(context)
    # What the newest night needs can be known, what the first needs cannot: nothing is removed.
    assert any("damaged" in problem for problem in prune(context, registry, dry_run=True).problems)
    assert first.decision
    with pytest.raises(RetrainError, match="is damaged") as caught:
        report(context, first)
    assert "restore it from a backup" in caught.value.hint


def test_origins_are_made_again_from_their_split_or_named_with_the_one_thing_to_do(
    context: Context, caplog: pytest.LogCaptureFixture
) -> None:
    prepare(context)
    (key,) = keys(context, "splits/origins", ".parquet")
    whole = context.records.load_table(key)
    for key_, data in plain_cells(6, 4, seed=2, first=200).items():
        context.store.put(key_, data)
    context.store.put(key, b"PAR1 and no more")
    prepare(context)
    assert (
        context.records.load_table(key)
        .sort_values("pixels", ignore_index=True)
        .equals(whole.sort_values("pixels", ignore_index=True))
    )
    assert f"the table {key}" in caplog.text
    context.store.put(key, b"PAR1 and no more")
    for rows in keys(context, "splits", ""):
        context.store.delete(rows)
    with pytest.raises(RetrainError, match="is damaged") as caught:
        prepare(context)
    assert caught.value.hint.startswith("nothing makes it again: restore it from a backup")


def test_the_first_champion_stays_the_reference_when_its_candidate_is_damaged(context: Context) -> None:
    from tasks.choose import reference_version

    registry = Registry(context.settings)
    trained(context)
    reference = reference_version(context, registry)
    assert reference is not None
    context.store.put(record_key(Candidate.kind, reference.candidate), b"{")
    assert reference_version(context, registry) == reference


def test_a_flipped_bit_in_a_table_is_noticed_or_changes_nothing(context: Context) -> None:
    split = prepare(context).split
    whole, data = context.records.load_table(split.table), context.store.get(split.table)
    places = range(100, len(data) - 100, len(data) // 40)
    noticed = 0
    for place in places:
        context.store.put(split.table, data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        if context.records.find_whole(Split, split.id) is None:
            noticed += 1
        else:  # in what describes a page, and is not read
            assert context.records.load_table(split.table).equals(whole)
    assert noticed > 0.8 * len(places)
