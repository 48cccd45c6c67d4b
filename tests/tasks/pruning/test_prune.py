"""Prune: what is not needed goes; whatever a report, a version, a rollback or an approval needs is there and works."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest

from flows import retrain
from flows.night import StageTimer, finished_night
from infra.registry.registry import Registry
from infra.store.keys import LABELED, report_key
from infra.store.memory import MemoryStore
from tasks.champion.approval import open_requests
from tasks.champion.history import history
from tasks.combine import find_candidate
from tasks.commands.answer_approval import answer
from tasks.commands.rollback import override, rollback
from tasks.context import Context
from tasks.pruning.prune import Pruned, prune, tidy, tidy_here
from tasks.pruning.retire import find_retired
from tasks.pull import pull
from tasks.report import report
from tasks.training.specs import find_member, member_specs
from tests.builders import (
    GREEN,
    RED,
    CountingStore,
    channel_member,
    context_over,
    leave_finished_training,
    leave_finished_trainings,
    plain_cells,
    prepare,
    registry_in,
    with_settings,
)
from tests.stages import plain_stages
from validation.errors import ObjectMissing, StoreUnreachable
from validation.records import Candidate, Decision, Night, Snapshot, Split, Verdict

GATE = {"min_auc": 0.0, "min_sensitivity": 0.0, "min_specificity": 0.0, "error_budget": 0.4, "looks": 8}
# Nothing is too young to go; what stays, stays because it is needed.
NOW = {"orphan_days": 0, "models_days": 0, "models_nights": 1, "reports_days": 0, "reports_nights": 1, "packs": 1}
KEEP_ALL = {"automatic": False}

pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("tried_here")]


class World(NamedTuple):
    """Five nights: promoted, promoted, kept, kept, awaiting approval; then a training without a decision."""

    context: Context
    registry: Registry
    nights: list[Night]


def a_night(context: Context, fastai: bytes, keras: bytes) -> Night:
    """One night whose trainings have ended with these model files."""
    prepared = prepare(context, Registry(context.settings).champion())
    for name, member in (("fastai", fastai), ("keras", keras)):
        leave_finished_trainings(context, name, prepared.split.id, member)
    return retrain.run_night(context)


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory, empty_registry: Path) -> Iterator[tuple[Context, list[Night]]]:
    """The world, made once; a test gets a copy of it."""
    with pytest.MonkeyPatch.context() as patch:
        plain_stages(patch)
        home = tmp_path_factory.mktemp("lived") / "home"
        registry_in(home, empty_registry)
        context = context_over(CountingStore(plain_cells()), home, gate=GATE)
        models = [
            (channel_member(RED), channel_member(RED, centre=104.0)),
            (channel_member(GREEN), channel_member(RED, centre=103.0)),
            (channel_member(RED, centre=102.0), channel_member(RED, centre=101.0)),
            (channel_member(RED, centre=99.0), channel_member(RED, centre=98.0)),
        ]
        nights = []
        for number, (fastai, keras) in enumerate(models):
            nights.append(a_night(context, fastai, keras))
            # Cells arrive and go, so that every night has a different snapshot.
            deliver(context, number)
        rollback(context, Registry(context.settings), "1", why="to be beaten again", who="a test")
        by_person = with_settings(context, gate=GATE, promotion={"approval": "person"})
        nights.append(a_night(by_person, channel_member(GREEN, centre=104.0), channel_member(RED, centre=97.0)))
        deliver(context, 9)
        prepared = prepare(context)
        leave_finished_trainings(context, "fastai", prepared.split.id, channel_member())
        yield context, nights


def deliver(context: Context, number: int) -> None:
    for key, data in plain_cells(2, 4, seed=number + 2, first=200 + 10 * number).items():
        context.store.put(key, data)
    assert isinstance(context.store, MemoryStore)
    for key in [key for key in context.store.objects if key.startswith(LABELED)][:4]:
        del context.store.objects[key]


@pytest.fixture
def world(lived: tuple[Context, list[Night]], home: Path) -> World:
    context, nights = lived
    assert isinstance(context.store, MemoryStore)
    shutil.copytree(context.workspace.home, home)
    # MLflow names its files by full path; what is not touched may stay where it is.
    copy = context_over(CountingStore(context.store.objects), home, gate=GATE)
    settings = copy.settings.model_copy(update={"registry_artifacts": (home / "mlflow-artifacts").as_uri()})
    return World(dataclasses.replace(copy, settings=settings), Registry(settings), nights)


def pruning(world: World, **rules: float) -> World:
    """The same world under other rules of retention."""
    settings = world.context.settings
    changed = settings.model_copy(update={"prune": settings.prune.model_copy(update={**NOW, **rules})})
    return world._replace(context=dataclasses.replace(world.context, settings=changed))


def prune_often(world: World) -> list[Pruned]:
    """What nothing refers to goes when it was seen so on three occasions."""
    runs = [prune(world.context, world.registry) for _ in range(4)]
    assert [pruned.problems for pruned in runs] == [[]] * 4
    return runs


def objects(world: World) -> dict[str, bytes]:
    assert isinstance(world.context.store, MemoryStore)
    return dict(world.context.store.objects)


def decision_of(world: World, number: int) -> Decision:
    return world.context.records.load(Decision, world.nights[number].decision or "")


def test_the_world_has_the_stated_verdicts_and_history(world: World) -> None:
    verdicts = [night.verdict for night in world.nights]
    assert verdicts == [Verdict.PROMOTED, Verdict.PROMOTED, Verdict.KEPT, Verdict.KEPT, Verdict.AWAITING_APPROVAL]
    assert [entry.action for entry in history(world.context)] == ["promoted", "promoted", "rollback"]


def test_by_default_only_remakeable_things_of_a_young_store_are_removed(world: World) -> None:
    before = objects(world)
    settings = world.context.settings.model_copy(update={"prune": type(world.context.settings.prune)()})
    context = dataclasses.replace(world.context, settings=settings)
    for _ in range(4):
        pruned = prune(context, world.registry)
        assert pruned.problems == []
    after, registered = objects(world), {candidate for candidate, _ in world.registry.version_sources()}
    waiting = {request.challenger for request in open_requests(context)}
    kept = [context.records.load(Candidate, id_) for id_ in context.records.ids(Candidate)]
    # Each CNN's file has its members; their own files and weights stay for what is registered, or may be.
    members = {member.id for one in kept if one.id not in registered | waiting for member in one.members}
    gone = {key.split("/")[2] for key in before.keys() - after.keys()}
    assert gone <= members
    assert all(key.startswith("retraining/members/") for key in before.keys() - after.keys())
    assert {key: before[key] for key in after} == after
    assert len(list((context.workspace.home / "cache" / "packs").iterdir())) == 2


@pytest.mark.parametrize("seed", range(2))
def test_whatever_is_needed_still_works_after_pruning(world: World, seed: int) -> None:
    """Any rules, any acts before: reports are built again byte for byte, versions load, roll back and reproduce."""
    random = Random(seed)
    world = pruning(
        world,
        models_nights=random.randint(1, 6),
        reports_nights=random.randint(1, 6),
        cache_gb=random.choice([0, 0.0001, 1]),
        orphan_days=random.choice([0, 30]),
    )
    context, registry = world.context, world.registry
    inputs = {key: data for key, data in objects(world).items() if key.startswith(LABELED)}
    if random.random() < 0.5:
        override(context, registry, decision_of(world, 2), why="by hand", who="a test")
    if random.random() < 0.5:
        rollback(context, registry, "2", why="back again", who="a test")
    pages = {night.decision: context.store.get(report_key(night.decision or "")) for night in world.nights}
    entries, champion = history(context), registry.champion()
    prune_often(world)

    assert {key: data for key, data in objects(world).items() if key.startswith(LABELED)} == inputs
    assert (history(context), registry.champion()) == (entries, champion)
    protected = {entry.decision for entry in entries} | {request.decision for request in open_requests(context)}
    for night in world.nights:
        if find_retired(context, night.decision or "") is None:
            assert report(context, night).read_bytes() == pages[night.decision]
        else:
            assert night.decision not in protected
    for version in {entry.version_after for entry in entries}:
        if registry.champion() != registry.version(version):
            rollback(context, registry, version, why="does it still work?", who="a test")
            if context.records.load(Decision, registry.decision_of(version) or "").evaluation:
                assert "equal to the recorded predictions to the last bit" in history(context)[-1].checked
        candidate = context.records.load(Candidate, registry.version(version).candidate)
        for member in candidate.members:
            assert context.store.exists(member.weights_key)
        split = context.records.load(Split, candidate.split)
        assert len(context.records.load_table(split.table)) > 0
    if registry.version("1") != registry.champion():
        rollback(context, registry, "1", why="whom the challenger that waits was compared with", who="a test")
    (request,) = open_requests(context)
    given, champion = answer(context, registry, request.decision, "approve", why="it is better", who="a test")
    assert given.answer == "approve"
    assert champion == registry.champion()
    if seed == 0:  # the next night finds all that it builds on
        night = a_night(context, channel_member(GREEN, centre=103.5), channel_member(RED, centre=96.0))
        assert night.decision not in {other.decision for other in world.nights}


def test_a_pruning_killed_anywhere_ends_like_one_that_was_not_killed(world: World) -> None:
    world = pruning(world)
    before = objects(world)
    prune_often(world)
    expected = objects(world).keys()
    removed = len(before.keys() - expected)
    assert removed > 20
    store = world.context.store
    assert isinstance(store, MemoryStore)
    for at in range(1, removed, removed // 3):
        store.objects.clear()
        store.objects.update(before)
        (notes,) = (world.context.workspace.home / "cache").glob("unreferenced-*")
        notes.unlink()
        calls = iter(range(1, 10_000))

        def killed(key: str, sound: Callable[[str], None], at: int = at, calls: Iterator[int] = calls) -> None:
            if next(calls) == at:
                raise KeyboardInterrupt
            sound(key)

        for _ in range(3):
            with pytest.MonkeyPatch.context() as patch:
                sound = store._remove
                patch.setattr(store, "_remove", lambda key, sound=sound, killed=killed: killed(key, sound))
                try:
                    prune(world.context, world.registry)
                except KeyboardInterrupt:
                    break
        assert_nothing_half_removed_is_believed(world, at % len(world.nights))
        prune_often(world)
        assert objects(world).keys() == expected, at


def assert_nothing_half_removed_is_believed(world: World, *numbers: int) -> None:
    """A report that was not retired is built again, to the same bytes."""
    for night in (world.nights[number] for number in numbers):
        if find_retired(world.context, night.decision or "") is None:
            before = world.context.store.get(report_key(night.decision or ""))
            assert report(world.context, night).read_bytes() == before


def test_an_unreferenced_object_waits_for_three_sightings_and_its_grace_period(world: World) -> None:
    stray = {"retraining/snapshots/" + "a" * 24 + ".json": b"{}", "retraining/candidates/" + "b" * 24 + "/x": b"file"}
    for key, data in stray.items():
        world.context.store.put(key, data)
    patient = pruning(world, orphan_days=1)
    for _ in range(5):
        assert prune(patient.context, world.registry).waiting["snapshots"] >= 1
    assert stray.keys() <= objects(world).keys()
    hasty = pruning(world)
    prune_often(hasty)
    assert not stray.keys() & objects(world).keys()


def test_a_part_goes_when_no_table_names_it_and_none_while_a_table_cannot_be_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.store.records.WORTH_PARTS", 0)
    monkeypatch.setattr("infra.store.parts.GONE_SHARE", 0.0)
    world = pruning(world)
    context, store = world.context, world.context.store
    assert isinstance(store, MemoryStore)
    rows = context.records.load_table(pull(context).table)
    tables: list[str] = []
    for count in (20, 25, 24):  # the later ones have the first's part, and one more each
        id_ = f"{count:024d}"
        before = tables[-1] if tables else None
        tables.append(context.records.save_table(Snapshot, id_, "objects", rows[:count], by=["key"], before=before))
    first, second, third = (context.records.load_manifest(table).part_keys() for table in tables)
    assert first < second
    named = first | second | third
    lost = (second | third) - first
    store.put(tables[0], damaged := store.get(tables[0])[:-1])
    for table in tables[1:]:
        store.delete(table)
    pruned = [prune(pruning(world, orphan_days=1).context, world.registry) for _ in range(4)]
    assert all("parts of tables" in problem for one in pruned for problem in one.problems)
    assert named <= objects(world).keys()
    store.put(tables[0], damaged + b"}")
    waiting = prune(pruning(world, orphan_days=1).context, world.registry).waiting
    assert waiting["parts"] == len(lost)
    # A table that nothing refers to goes, and its parts after it.
    prune_often(world)
    assert not {*tables, *named} & objects(world).keys()


def test_objects_not_named_like_records_are_left_alone(world: World) -> None:
    strange = ["retraining/snapshots/notes.txt", "retraining/other/" + "a" * 24 + ".json", "retraining/mine.json"]
    for key in strange:
        world.context.store.put(key, b"a person's file")
    prune_often(pruning(world))
    assert set(strange) <= objects(world).keys()


def test_a_dry_run_lists_what_a_real_one_removes_and_removes_nothing(world: World) -> None:
    world = pruning(world)
    for _ in range(2):
        prune(pruning(world, models_nights=9, reports_nights=9).context, world.registry)
    before, files = objects(world), sorted(world.context.workspace.home.rglob("*"))
    dry = prune(world.context, world.registry, dry_run=True)
    assert objects(world) == before
    assert sorted(world.context.workspace.home.rglob("*")) == files
    done = prune(world.context, world.registry)
    assert {removal.name for removal in dry.removals} == {removal.name for removal in done.removals}
    assert dry.size > 0
    assert {why for _, why in dry.by_reason()} >= {"nothing refers to it"}


def test_a_challenger_whose_file_was_removed_is_reported_and_trained_again_under_another_name(world: World) -> None:
    world = pruning(world, reports_nights=9)
    kept = decision_of(world, 2)
    challenger = world.context.records.load(Candidate, kept.challenger or "")
    specs = [member.spec for member in challenger.members]
    assert find_candidate(world.context, specs) == (challenger.id, challenger)
    prune_often(world)
    assert not world.context.store.exists(challenger.model_key)
    assert world.context.records.load(Candidate, challenger.id) == challenger
    id_, candidate = find_candidate(world.context, specs)
    assert (candidate, id_ != challenger.id) == (None, True)
    with pytest.raises(ObjectMissing, match="is not in memory://counting any more") as caught:
        override(world.context, world.registry, kept, why="too late", who="a test")
    assert "prune.models_days" in caught.value.hint
    assert_nothing_half_removed_is_believed(world, 2)


def test_a_retired_report_leaves_a_page_and_its_data_may_return(world: World) -> None:
    world = pruning(world)
    prune_often(world)
    context, night = world.context, world.nights[2]
    retired = find_retired(context, night.decision or "")
    assert retired is not None
    page = context.store.get(report_key(night.decision or "")).decode()
    assert "The report was retired" in page
    assert decision_of(world, 2).sentence.split(";")[0][:40] in page
    with pytest.raises(ObjectMissing, match="was retired on"):
        report(context, night)
    (context.workspace.reports / f"{night.decision}.html").unlink()
    again = finished_night(context, night.id, world.registry, StageTimer())
    assert again is not None
    assert again.verdict is Verdict.NOTHING_NEW
    assert Path(again.report or "").exists()


def test_data_of_a_retired_night_that_returns_under_other_settings_is_judged_again(world: World) -> None:
    world = pruning(world)
    decision = decision_of(world, 2)
    snapshot = world.context.records.load(Snapshot, decision.snapshot)
    rows = world.context.records.load_table(snapshot.table)
    prune_often(world)
    assert not world.context.store.exists(snapshot.table)
    store = world.context.store
    assert isinstance(store, MemoryStore)
    cells = dict(plain_cells())
    for number in range(5):
        cells |= plain_cells(2, 4, seed=number + 2, first=200 + 10 * number)
    for key in [key for key in store.objects if key.startswith(LABELED)]:
        del store.objects[key]
    store.objects.update({key: cells[key] for key in rows["key"]})
    # Judged against the same champion, so that validation and trainings are the very same; the gate is another.
    rollback(world.context, world.registry, "2", why="as it was then", who="a test")
    gate = world.context.settings.gate.model_copy(update={"resamples": 1_001})
    context = dataclasses.replace(world.context, settings=world.context.settings.model_copy(update={"gate": gate}))
    prepared = prepare(context, world.registry.champion())
    assert (prepared.snapshot.id, prepared.split.id) == (snapshot.id, decision.split)
    for name, model in (("fastai", channel_member(RED, centre=102.0)), ("keras", channel_member(RED, centre=101.0))):
        specs = member_specs(context.settings, name, prepared.split.id)
        assert find_candidate(context, specs)[1] is None
        for spec in specs:
            id_, member = find_member(context, spec)
            assert member is None
            leave_finished_training(context, spec, model).rename(context.workspace.home / "scratch" / f"train-{id_}")
    night = retrain.run_night(context)
    assert night.verdict is Verdict.KEPT
    assert night.decision != decision.id
    assert night.challenger not in decision.candidates


def test_killed_registrations_are_removed_and_versions_stay(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world = pruning(world)
    artifacts = world.context.workspace.home / "mlflow-artifacts"
    files = set(artifacts.rglob("*.onnx"))
    decision = decision_of(world, 4)
    challenger = world.context.records.load(Candidate, decision.challenger or "")
    model = world.context.store.get(challenger.model_key)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(world.registry._client, "create_model_version", killed)
        with pytest.raises(KeyboardInterrupt):
            world.registry.register(challenger, model, decision)
    assert len(world.registry.abandoned_runs()) == 1
    assert len(set(artifacts.rglob("*.onnx")) - files) == 1
    prune_often(world)
    assert world.registry.abandoned_runs() == []
    assert set(artifacts.rglob("*.onnx")) == files
    for version in ("1", "2"):
        assert world.registry.model_bytes(world.registry.version(version))
    assert world.registry.register(challenger, model, decision).version == "3"


def test_caches_keep_what_is_in_the_store_and_useless_work_folders_are_removed(world: World) -> None:
    world = pruning(world, scratch_days=7)
    home = world.context.workspace.home
    old, young = home / "scratch" / "train-old", home / "scratch" / "train-young"
    challenger = world.context.records.load(Candidate, decision_of(world, 0).challenger or "")
    done = home / "scratch" / f"train-{challenger.members[0].id}"
    for folder in (old, young, done):
        folder.mkdir(parents=True)
        (folder / "stderr.log").write_text("what it said")
    for path in (old / "stderr.log", old):
        os.utime(path, (0, 0))
    torn = home / "cache" / ".tmp-999999999-abc"
    torn.write_bytes(b"half of a file")
    os.utime(torn, (0, 0))
    before = {path.name for path in (home / "cache" / "objects").rglob("*") if path.is_file()}
    prune_often(world)
    assert young.exists()
    assert [path for path in (old, done, torn) if path.exists()] == []
    after = {path.name for path in (home / "cache" / "objects").rglob("*") if path.is_file()}
    # Every cell judges, so every one may be scored again: none may go.
    assert after == before
    store = world.context.store
    assert isinstance(store, CountingStore)
    store.fetched.clear()
    prepare(world.context)
    assert sum(store.fetched.values()) == 0  # what tonight needs was not fetched again


def test_a_machine_that_only_trains_prunes_its_caches_and_nothing_else_and_never_beside_a_night(world: World) -> None:
    context = pruning(world, packs=1, cache_gb=0.00005).context
    home, before = context.workspace.home, objects(world)
    packs = home / "cache" / "packs"
    with context.workspace.night_lock():
        tidy_here(context)
    assert len(list(packs.iterdir())) > 1
    tidy_here(context)
    assert len(list(packs.iterdir())) == 1
    kept = [path.stat().st_size for path in (home / "cache" / "objects").rglob("*") if path.is_file()]
    assert 0 < sum(kept) <= 50_000
    assert objects(world) == before


def test_an_unreachable_store_costs_the_night_a_warning(
    world: World, told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise StoreUnreachable("the store is away", "wait")

    monkeypatch.setattr(world.context.store, "list", away)
    before = objects(world)
    tidy(pruning(world).context)
    assert "not pruned: the store: the store is away" in told.text
    assert objects(world) == before


def test_a_damaged_decision_stops_the_sweep_and_is_named(world: World) -> None:
    damaged = f"retraining/decisions/{decision_of(world, 1).id}.json"
    world.context.store.put(damaged, b"{")
    before = objects(world)
    pruned = prune(pruning(world).context, world.registry)
    assert any(damaged in problem for problem in pruned.problems)
    assert objects(world) == before
