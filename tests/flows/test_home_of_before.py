"""A home folder that an earlier release wrote, with its store and its registry: the next one carries on with it.

``tests/data/home_of_0.1.0.tar.xz`` is what two nights with the tests' fake CNN left before the packages were laid out
anew (commit 96a17b9): the first promoted version 1, the second kept it.
"""

from __future__ import annotations

import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from infra.registry.registry import Registry
from tasks.commands.predict import predict
from tasks.context import Context
from tasks.nights import find_decision, find_night
from tests import ROOT
from tests.builders import small_settings
from tests.nights import Nights, bring
from validation.records import Verdict

pytestmark = [pytest.mark.server, pytest.mark.slow]

ARCHIVE = ROOT / "tests" / "data" / "home_of_0.1.0.tar.xz"
WRITTEN_AT = "/srv/malaria/home"
FIRST, SECOND = "9256b664ce99f15da396c8d4", "eaf74ea288156513566dc588"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder, unpacked; MLflow keeps absolute paths, which follow it here."""
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    with closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            columns = database.execute(f"PRAGMA table_info({table})").fetchall()
            for column in [name for _, name, kind, *_ in columns if kind.startswith(("VARCHAR", "TEXT"))]:
                database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (WRITTEN_AT, str(folder)))
    return folder


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory, empty_registry: Path, prefect_url: str) -> Iterator[Nights]:
    made = Nights(tmp_path_factory.mktemp("nights"), empty_registry, PREFECT_API_URL=prefect_url)
    yield made
    made.close()


def test_its_champion_history_and_decisions_are_read(home: Path) -> None:
    settings = small_settings(home)
    context = Context.open(settings)
    champion = Registry(settings).champion()
    assert champion is not None
    assert (champion.version, champion.model) == ("1", "fastai")
    assert find_night(context, "latest").decision == SECOND
    assert find_decision(context, FIRST[:6]).verdict is Verdict.PROMOTED
    assert find_decision(context, "latest").verdict is Verdict.KEPT


def test_its_champion_predicts(home: Path) -> None:
    cell = next((home / "store" / "labeled" / "Parasitized").glob("*.png"))
    result = predict(small_settings(home), [cell])
    assert (result.champion.version, result.predictions[0].problem) == ("1", None)


def test_the_next_nights_carry_on_with_it(home: Path, nights: Nights) -> None:
    told = nights.run(home, "history", "--json")
    assert told.code == 0, told.err
    assert FIRST in told.out
    # The reports of old decisions are pages that stay as they are; these had none left.
    told = nights.run(home, "report", FIRST, "--json")
    assert (told.code, "was written by an earlier version" in told.err) == (1, True)
    night = nights.run(home).night
    assert (night["champion_before"], night["champion_after"]) == ("1", "1")
    bring(home, 6, first=200)
    night = nights.run(home).night
    assert (night["verdict"], night["champion_after"]) == ("kept", "1")
    assert night["images"]["new"] == 24
    assert nights.run(home, "prune", "--json").code == 0
