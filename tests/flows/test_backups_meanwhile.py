"""A backup while any other command runs: what was copied is one moment, on which nights go on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from infra.backup import back_up
from infra.registry.registry import Registry
from infra.settings.settings import Settings
from infra.store.folder import FolderStore
from tasks.champion.history import history
from tests.builders import context_over, registry_in
from tests.interleaving import COMMANDS, GATE, PRUNE, Machine, Place, check, fill, run, simplified
from validation.errors import RetrainError

pytestmark = [pytest.mark.thorough, pytest.mark.longest]

# In this order all of them find something to do; how much of the store is copied when it begins, in quarters.
MEANWHILE = [
    ("approve", 2),
    ("night", 1),
    ("rollback", 3),
    ("promote", 0),
    ("import and night", 2),
    ("import", 1),
    ("prune", 1),
    ("night", 3),
]


def on_disk(folder: Path, store: Path, registry: Registry) -> Place:
    objects = FolderStore(store)
    context = context_over(objects, folder, gate=GATE, prune=PRUNE)
    return Place(folder, objects, registry, [Machine("a", context, 0.0)])


@pytest.fixture
def place(tmp_path: Path, empty_registry: Path) -> Iterator[Place]:
    home = tmp_path / "home"
    (home / "store").mkdir(parents=True)
    with simplified():
        made = on_disk(home, home / "store", registry_in(home, empty_registry))
        fill(made)
        yield made


def meanwhile(place: Place, command: str, refused: list[RetrainError | None]) -> None:
    refused.append(run(place, command, place.machines[0]))


def before_copy(number: int, step: Callable[[], None], patch: pytest.MonkeyPatch) -> None:
    """Take a step before the copy of that number, counted from 1; what the step itself copies does not count."""
    copy, numbers = shutil.copy2, count(1)

    def copy_later(source: Path, target: Path) -> None:
        if next(numbers) == number:
            patch.setattr(shutil, "copy2", copy)
            step()
        copy(source, target)

    patch.setattr(shutil, "copy2", copy_later)


def test_a_backup_beside_every_other_command_is_of_one_moment(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = place.machines[0].context.settings
    for number, (command, quarters) in enumerate(MEANWHILE):
        entries = len(history(place.machines[0].context))
        files = sum(1 for _ in FolderStore(Path(place.folder) / "store").walk())
        saved, refused = tmp_path / f"saved{number}", list[RetrainError | None]()

        with monkeypatch.context() as patch:
            before_copy(1 + quarters * (files - 1) // 4, partial(meanwhile, place, command, refused), patch)
            back_up(settings, saved)
        assert refused == [None], command
        _goes_on(saved, entries)


def _goes_on(saved: Path, entries: int) -> None:
    """Check what was saved, as the home that it would be put back as: it is whole, and so is its next night."""
    settings = Settings(
        home=saved,
        registry=f"sqlite:///{saved / 'registry'}",
        registry_artifacts=(saved / "artifacts").as_uri(),
    )
    found = on_disk(saved, saved / "store", Registry(settings))
    assert len(history(found.machines[0].context)) == entries
    check(found, entries, {})
    found.night(found.machines[0])
    check(found, entries, {})


def test_every_command_is_tried() -> None:
    assert {command for command, _ in MEANWHILE} | {"reject"} == set(COMMANDS)
