"""What runs beside the tests: one after the other, in the environment of the beginning, and never after the end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest

from tests.ahead import Lane
from tests.fleet import until

PYTHON = [sys.executable, "-c"]


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Lane]:
    lane = Lane(tmp_path)
    yield lane
    lane.close()


def module(name: str, ahead: Any) -> ModuleType:
    return cast(ModuleType, SimpleNamespace(__name__=name, ahead=ahead))


def test_each_module_is_done_once_and_whoever_asks_is_told(made: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SET_LATER", "x")
    asks = "import os; print(os.environ.get('SET_LATER'), os.environ['GIVEN'])"
    good = module("good", lambda lane: lane.run([*PYTHON, asks], GIVEN="y").stdout)
    bad = module("bad", lambda lane: 1 // 0)
    for one in (bad, good, good):
        made.begin(one)
    assert made.result("good") == "None y\n"
    with pytest.raises(ZeroDivisionError):
        made.result("bad")


def test_nothing_outlives_the_end(made: Lane, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    waits = f"import pathlib, time; pathlib.Path({str(begun)!r}).touch(); time.sleep(600)"
    made.begin(module("long", lambda lane: lane.run([*PYTHON, waits]).returncode))
    made.begin(module("next", lambda lane: lane.run([*PYTHON, ""]).returncode))
    until(begun.exists)
    made.close()
    assert made.result("long") == -9
