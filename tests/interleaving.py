"""Two machines on one store and one registry: a command is run whole just before a chosen write of another one.

The store is in memory, and so is the registry: a world is put back as it was within milliseconds, so that all writes of
all pairs of commands can be tried, which ``python -m tests.interleaving [EVERY [COMMAND]]`` does: at every so-manieth
write, of that command only. All of it takes an hour of one core. Everything else is real.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from flows import retrain
from infra.registry.registry import Registry
from infra.registry.trainings import Tried
from infra.store.base import Store
from infra.store.keys import OURS, record_key
from infra.store.memory import MemoryStore
from tasks.champion.history import ENTRY, history, reconcile_champion, untouched_history
from tasks.commands.answer_approval import answer
from tasks.commands.rollback import override, rollback
from tasks.context import Context
from tasks.intake.import_cells import import_cells
from tasks.judging.evidence import is_sealed
from tasks.judging.ledger import read_ledger
from tasks.nights import load_all
from tasks.pruning.prune import prune
from tests.builders import GREEN, RED, channel_member, context_over, leave_finished_training, plain_cells, with_settings
from tests.stages import plain_stages
from validation.digest import digest, sha256
from validation.errors import ModelFileInvalid, RetrainError, UsageError
from validation.records import (
    Candidate,
    ChampionRef,
    Decision,
    Evaluation,
    Exhibits,
    FieldNight,
    Member,
    Night,
    Pack,
    Promotion,
    Snapshot,
    Split,
    TrainSpec,
    ValidationResult,
    Verdict,
)

GATE = {"min_auc": 0.0, "min_sensitivity": 0.0, "min_specificity": 0.0}
# What is old goes at once, so that a prune has something to do.
PRUNE = {"automatic": False, "models_nights": 1, "models_days": 0, "reports_nights": 1, "reports_days": 0}
Step = Callable[[], None]


class WatchedStore(MemoryStore):
    """A store in memory that says when it is about to be written to."""

    def __init__(self, step: Step) -> None:
        super().__init__("memory://watched")
        self._step = step

    def put(self, key: str, data: bytes) -> None:
        self._step()
        super().put(key, data)

    def create(self, key: str, data: bytes) -> bool:
        self._step()
        with self._creating:
            if key in self.objects:
                return False
            self.objects[key] = data
            return True

    def _remove(self, key: str) -> None:
        self._step()
        super()._remove(key)


@dataclass
class Version:
    """A registered version: what MLflow has of it."""

    reference: ChampionRef
    decision: str
    model: bytes
    evaluation: str | None


class WatchedRegistry(Registry):
    """A registry in memory that says when it is about to be written to. Each of its writes is atomic."""

    def __init__(self, step: Step) -> None:
        self.uri = "memory://registry"
        self._step = step
        self.versions: list[Version] = []
        self.alias: str | None = None
        self.entries: dict[str, str] = {}

    def champion(self) -> ChampionRef | None:
        return self.version(self.alias) if self.alias else None

    def version(self, number: str) -> ChampionRef:
        return self._version(number).reference

    def _version(self, number: str) -> Version:
        if not number.isdecimal() or not 0 < int(number) <= len(self.versions):
            raise UsageError(f"no version {number}")
        return self.versions[int(number) - 1]

    def version_numbers(self) -> list[str]:
        return [version.reference.version for version in self.versions]

    def decision_of(self, version: str) -> str | None:
        return self._version(version).decision

    def model_bytes(self, reference: ChampionRef) -> bytes:
        model = self._version(reference.version).model
        if sha256(model) != reference.model_sha256:
            raise ModelFileInvalid("not the registered file")
        return model

    def evidence(self, version: str, name: str) -> str | None:
        return self._version(version).evaluation if name == "evaluation" else None

    def register(
        self,
        candidate: Candidate,
        model: bytes,
        decision: Decision,
        evaluation: Evaluation | None = None,
        card: str = "",
    ) -> ChampionRef:
        del card
        if sha256(model) != candidate.model_sha256:
            raise ModelFileInvalid("not the candidate's file")
        self._step()
        for version in self.versions:
            if version.decision == decision.id:
                return version.reference
        reference = ChampionRef(
            version=str(len(self.versions) + 1),
            candidate=candidate.id,
            model=candidate.model,
            model_sha256=candidate.model_sha256,
            threshold=candidate.threshold,
            since=datetime.now(UTC),
        )
        text = evaluation.model_dump_json() if evaluation else None
        self.versions.append(Version(reference, decision.id, model, text))
        return reference

    def set_champion(self, version: str) -> None:
        self._step()
        self.alias = version

    def write_tags(self, reference: ChampionRef) -> None:
        raise AssertionError("no tag was removed")

    def note_night(self, night: Night, page: bytes) -> None:
        self._step()

    def note_trainings(self, night: Night, candidates: Sequence[Candidate], tried: Tried | None = None) -> None:
        self._step()

    def version_sources(self) -> list[tuple[str, str]]:
        return [(version.reference.candidate, version.decision) for version in self.versions]

    def abandoned_runs(self) -> list[str]:
        return []

    def delete_report_page(self, decision: str) -> None:
        self._step()

    def put_if_absent(self, name: str, text: str) -> str:
        self._step()
        return self.entries.setdefault(name, text)

    def entries_with_prefix(self, prefix: str) -> dict[str, str]:
        found = sorted(name for name in self.entries if name.startswith(prefix))
        return {name.removeprefix(prefix): self.entries[name] for name in found}


@dataclass(frozen=True)
class Machine:
    """A home folder of its own; ``shift``: trainings on two machines differ in their last bits."""

    name: str
    context: Context
    shift: float


@dataclass
class Place:
    """A store, a registry and the machines that use them."""

    folder: Path
    store: Store
    registry: Registry
    machines: list[Machine]
    decisions: dict[str, str] = field(default_factory=dict)

    def deliver(self, objects: dict[str, bytes]) -> None:
        for key, data in objects.items():
            self.store.put(key, data)

    def night(self, machine: Machine, **training: Any) -> Night:
        """Run a night whose CNNs come out as the machine makes them; ``channel`` and ``centre`` of its members."""
        channel, centre = training.get("channel", GREEN), training.get("centre", 105.0)

        def train_here(folder: Path, spec: TrainSpec, *_: Any) -> None:
            about = 1.0 if spec.model == "keras" else 0.0
            leave_finished_training(
                machine.context, spec, channel_member(channel, centre=centre - about + machine.shift)
            )
            assert folder.exists()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tasks.train._run_child", train_here)
            for module in ("flows.retrain", "tasks.reporting.exhibits"):
                patch.setattr(f"{module}.Registry", lambda _: self.registry)
            return retrain.run_night(training.get("context", machine.context))


class World(Place):
    """A place in memory that two machines use; ``at`` and ``then``: what happens before which write."""

    store: WatchedStore
    registry: WatchedRegistry

    def __init__(self, folder: Path) -> None:
        store = WatchedStore(self.step)
        machines = [
            Machine(name, context_over(store, folder / name, gate=GATE, prune=PRUNE), shift)
            for name, shift in (("a", 0.0), ("b", 1e-5))
        ]
        super().__init__(folder, store, WatchedRegistry(self.step), machines)
        self.writes, self.at = 0, 0
        self.then: Step | None = None
        self.saved: tuple[Any, ...] = ()

    def step(self) -> None:
        self.writes += 1
        if self.writes == self.at and self.then is not None:
            then, self.then = self.then, None
            then()

    def save(self) -> None:
        registry = self.registry
        self.saved = (dict(self.store.objects), list(registry.versions), registry.alias, dict(registry.entries))

    def restore(self) -> None:
        objects, versions, self.registry.alias, entries = self.saved
        self.store.objects, self.registry.versions = dict(objects), list(versions)
        self.registry.entries = dict(entries)
        self.writes, self.at, self.then = 0, 0, None
        for machine in self.machines:
            for place in ("reports", "scratch"):
                shutil.rmtree(machine.context.workspace.home / place, ignore_errors=True)


@contextmanager
def quiet_world(folder: Path) -> Iterator[World]:
    """A world with two champions behind it, a challenger that waits for a person, and cells for tonight."""
    with simplified():
        world = World(folder)
        fill(world)
        # Both machines have fetched and measured everything: that takes the time, and is the same every night.
        world.save()
        for machine in world.machines:
            for command in ("night", "import and night"):
                COMMANDS[command](world, machine)
                world.restore()
        yield world


@contextmanager
def simplified() -> Iterator[None]:
    """Nights without what is slow and stays the same: Prefect, processes, pages of figures."""
    with pytest.MonkeyPatch.context() as patch:
        plain_stages(patch)
        patch.setattr("tasks.intake.import_cells._WORKERS", 1)
        patch.setattr("tasks.judging.assignments.LONGEST_WAIT_SECONDS", 0.0)
        # A process of its own for each would take longer than all the rest.
        patch.setattr("tasks.champion.reproduce.rescore", _rescore)
        # Whatever is expected of a batch as a whole is met; a page of figures is drawn by other tests.
        patch.setattr("tasks.validate.check_batch", _no_expectations)
        patch.setattr("tasks.report.render_report", lambda inputs: f"<html>{inputs.night.model_dump_json()}</html>")
        yield


def _rescore(model: bytes, images: Any, *, sha256_expected: str, folds: Any = None) -> Any:
    from infra.scoring.model_file import ModelFile

    file = ModelFile(model, sha256_expected=sha256_expected)
    return file.score(images) if folds is None else file.score_by_fold(images, folds)


def _no_expectations(*_: Any) -> Any:
    from validation.batch.expectations import BatchChecks

    return BatchChecks((), {})


def fill(world: Place) -> None:
    """Bring two champions about, a challenger that waits for a person, cells for tonight, and a folder to import."""
    first = world.machines[0]
    world.deliver(plain_cells(36, 4))
    assert world.night(first, channel=RED).champion_after == "1"
    world.deliver(plain_cells(4, 4, seed=2, first=100))
    second = first.context.records.load(Decision, world.night(first, channel=RED, centre=104.0).decision or "")
    override(first.context, world.registry, second, why="younger", who="ann")
    world.deliver(plain_cells(4, 4, seed=3, first=200))
    asking = with_settings(first.context, gate=GATE, prune=PRUNE, promotion={"approval": "person"})
    waiting = world.night(first, context=asking)
    assert (waiting.verdict, waiting.champion_after) == (Verdict.AWAITING_APPROVAL, "2")
    decision = first.context.records.load(Decision, waiting.decision or "")
    # A decision of which a person may promote the challenger by hand: the other CNN of that night.
    other = next(id_ for id_ in decision.candidates if id_ != decision.challenger)
    kept = decision.model_copy(
        update={"id": digest("by hand"), "verdict": Verdict.KEPT, "challenger": other, "evaluation": None}
    )
    first.context.records.save(kept, kept.id)
    world.decisions = {"waits": decision.id, "by hand": kept.id}
    world.deliver(plain_cells(4, 4, seed=4, first=300))
    _imported(world)


def _imported(world: Place) -> None:
    """The folder of an import: new patients, and one of tonight's under another name."""
    folder = world.folder / "new"
    cells = plain_cells(4, 4, seed=5, first=400)
    renamed = {
        key.replace("C301P301", "C999P999"): data
        for key, data in plain_cells(4, 4, seed=4, first=300).items()
        if "C301P301" in key
    }
    assert renamed
    for key, data in {**cells, **renamed}.items():
        path = folder / key.removeprefix("labeled/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _night(world: Place, machine: Machine) -> None:
    world.night(machine)


def _import(world: Place, machine: Machine) -> None:
    import_cells(str(world.folder / "new"), world.store, machine.context.workspace)


def _import_and_night(world: Place, machine: Machine) -> None:
    _import(world, machine)
    world.night(machine)


def _rollback(world: Place, machine: Machine) -> None:
    rollback(machine.context, world.registry, None, why="worse in the field", who=f"{machine.name} by rollback")


def _promote(world: Place, machine: Machine) -> None:
    decision = machine.context.records.load(Decision, world.decisions["by hand"])
    override(machine.context, world.registry, decision, why="better in the field", who=f"{machine.name} by override")


def _approve(world: Place, machine: Machine) -> None:
    who = f"{machine.name} by approved"
    given, _ = answer(machine.context, world.registry, world.decisions["waits"], "approve", why="good", who=who)
    if given.who != who:
        raise UsageError(f"it was {given.who}, whose approval is finished here and stands in the history")


def _reject(world: Place, machine: Machine) -> None:
    who = f"{machine.name} by rejected"
    answer(machine.context, world.registry, world.decisions["waits"], "reject", why="not good", who=who)


def _prune(world: Place, machine: Machine) -> None:
    problems = prune(machine.context, world.registry).problems
    assert not problems, problems


COMMANDS: dict[str, Callable[[Place, Machine], None]] = {
    "night": _night,
    "import and night": _import_and_night,
    "import": _import,
    "rollback": _rollback,
    "promote": _promote,
    "approve": _approve,
    "reject": _reject,
    "prune": _prune,
}


PAIRS = [(first, second) for first in COMMANDS for second in COMMANDS]
# What the history calls what a command did.
ACTIONS = {"rollback": "rollback", "promote": "override", "approve": "approved"}


def run(world: Place, name: str, machine: Machine) -> RetrainError | None:
    """Run a command; return how it was refused, if it was."""
    try:
        COMMANDS[name](world, machine)
    except RetrainError as error:
        return error
    return None


def writes_of(world: World, name: str) -> int:
    """How often a command writes when nothing happens meanwhile."""
    world.restore()
    assert run(world, name, world.machines[0]) is None
    return world.writes


def moments(world: World, first: str, second: str, every: int) -> range:
    """Return every so-manieth write of ``first``; another pair begins with another one."""
    return range(1 + PAIRS.index((first, second)) % every, writes_of(world, first) + 1, every)


def interleave(world: World, first: str, second: str, at: int) -> None:
    """Run ``second`` on the other machine just before the write ``at`` of ``first``, and check what is left."""
    world.restore()
    one, two = world.machines
    before = len(history(one.context))
    refused: dict[str, RetrainError | None] = {}

    def meanwhile() -> None:
        refused["second"] = run(world, second, two)

    world.at, world.then = at, meanwhile
    refused["first"] = run(world, first, one)
    if world.then is not None:
        world.then = None  # it wrote less often than that
        return
    made = {
        f"{machine.name} by {action}": refused[which] is None
        for which, machine, name in (("first", one, first), ("second", two, second))
        for action in (ACTIONS.get(name),)
        if action
    }
    check(world, before, made)
    # Whatever was refused, the next nights end on both machines, and the second has nothing new.
    for machine in world.machines:
        last = world.night(machine)
    assert last.verdict is Verdict.NOTHING_NEW, last.sentence
    check(world, before, made)


def check(world: Place, before: int, made: dict[str, bool]) -> None:
    """Check a world: one champion, a true history with what was said to be done, whole records, one fold a cell."""
    context = world.machines[0].context
    champion = reconcile_champion(context, world.registry)
    entries = untouched_history(context, world.registry)
    decided = world.registry.entries_with_prefix(ENTRY)
    pointer = world.registry.champion()
    assert [Promotion.model_validate_json(text) for text in decided.values()] == entries
    for old, new in pairwise(entries):
        assert new.version_before == old.version_after
        assert new.at >= old.at
    assert champion is not None
    assert pointer is not None
    assert champion.version == entries[-1].version_after == pointer.version
    by = [entry.who for entry in entries[before:]]
    for who, succeeded in made.items():
        assert by.count(who) == succeeded, (who, succeeded, by)
    _check_records(context, world.registry)
    _check_folds(context)


def _check_records(context: Context, registry: Registry) -> None:
    """Read every record with its tables and files: those that a prune released have a record without files."""
    records, store = context.records, context.store
    there = {info.key for info in store.list(OURS)}
    for kind in (Snapshot, ValidationResult, Split, Pack, Member, Candidate, Evaluation, Exhibits, FieldNight, Night):
        for id_ in records.ids(kind):
            record = records.load(kind, id_)
            for value in dict(record).values():
                if isinstance(value, str) and value.endswith((".parquet", ".parts")) and value in there:
                    records.load_table(value)
            if isinstance(record, Candidate | Member) and record.model_key in there:
                assert sha256(store.get(record.model_key)) == record.model_sha256
    newest = max(load_all(context, Night), key=lambda night: night.finished_at)
    decision = records.load(Decision, newest.decision or "")
    for evaluation in (records.load(Evaluation, id_) for id_ in (decision.evaluation,) if id_):
        assert is_sealed(registry, evaluation)
        records.load_table(evaluation.predictions)
    page = store.get(f"{OURS}reports/{decision.id}.html").decode()
    assert page == f"<html>{_shown(newest).model_dump_json()}</html>"
    assert not [entry for entry in read_ledger(context, registry) if entry.problem]
    assert record_key(Night.kind, newest.id) in there


def _shown(night: Night) -> Night:
    """A page does not show how long it took to be built."""
    known = {
        name: {k: v for k, v in getattr(night, name).items() if k != "report"} for name in ("seconds", "memory_mb")
    }
    return night.model_copy(update=known)


def _check_folds(context: Context) -> None:
    """No cell is in two folds, and no patient has two origins, whichever nights dealt them out."""
    tables = []
    for split in load_all(context, Split):
        if context.store.exists(split.table):
            tables.append(context.records.load_table(split.table))
    rows = pd.concat(tables, ignore_index=True)
    assert (rows.groupby("pixels")["fold"].nunique() == 1).all()
    named = rows[rows["patient"] != ""]
    assert (named.groupby("patient")["origin"].nunique() == 1).all()


def main() -> int:
    """Try every pair at every write, or as the command line says; return how many went wrong."""
    parser = argparse.ArgumentParser()
    parser.add_argument("every", nargs="?", type=int, default=1)
    parser.add_argument("command", nargs="?", choices=COMMANDS)
    given, wrong = parser.parse_args(), 0
    pairs = [pair for pair in PAIRS if given.command in (None, pair[0])]
    with tempfile.TemporaryDirectory() as folder, quiet_world(Path(folder)) as world:
        logging.disable(logging.CRITICAL)
        for first, second in pairs:
            tried, started = moments(world, first, second, given.every), time.monotonic()
            for at in tried:
                try:
                    interleave(world, first, second, at)
                except Exception:
                    wrong += 1
                    sys.stdout.write(f"{first} / {second} at {at}: {traceback.format_exc()}")
            sys.stdout.write(f"{first} / {second}: {len(tried)} writes, {time.monotonic() - started:.0f} s\n")
            sys.stdout.flush()
    return wrong


if __name__ == "__main__":
    sys.exit(min(main(), 1))
