"""Every command beside every other: one is run whole, on another machine, just before a write of the other.

`python -m tests.interleaving` does it before every write of every pair.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.interleaving import PAIRS, World, interleave, moments, quiet_world

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with quiet_world(tmp_path_factory.mktemp("world")) as made:
        yield made


@pytest.mark.parametrize(
    ("first", "second", "every"),
    [
        ("night", "import and night", 30),
        ("night", "night", 30),
        ("night", "rollback", 40),
        ("rollback", "promote", 2),
        ("approve", "approve", 3),
    ],
)
def test_commands_of_two_machines_at_once_leave_one_champion_and_whole_records(
    world: World, first: str, second: str, every: int
) -> None:
    for at in moments(world, first, second, every):
        interleave(world, first, second, at)


@pytest.mark.longest
@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_so_does_every_pair_of_commands(world: World, first: str, second: str) -> None:
    for at in moments(world, first, second, 22 if "night" in first else 7):
        interleave(world, first, second, at)
