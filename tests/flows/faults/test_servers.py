"""A registry on MLflow's server over PostgreSQL: each of the two killed at a random moment of a night, or read-only."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flows.faults.servers import Mlflow, Postgres
from tests.flows.faults.test_places import refused_clearly
from tests.nights import Fault, Nights, bring
from tests.sound import check_sound, inputs

pytestmark = [pytest.mark.server, pytest.mark.slow]

# A night begins and ends with calls of the registry, with about 500 steps in between.
LATEST = 300


@pytest.fixture
def database() -> Iterator[Postgres]:
    server = Postgres("mlflow")
    yield server
    server.close()


@pytest.fixture
def mlflow(database: Postgres, tmp_path: Path) -> Iterator[Mlflow]:
    server = Mlflow(database.url, tmp_path)
    yield server
    server.close()


def test_a_registry_that_may_only_be_read_whose_database_is_killed_and_whose_server_is_killed(
    nights: Nights, database: Postgres, mlflow: Mlflow
) -> None:
    home = nights.home("servers")
    rng = random.Random(5)
    place: dict[str, Any] = {"RETRAIN_REGISTRY": mlflow.url}

    end_sessions = "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid()"
    database.tell("alter database mlflow set default_transaction_read_only = on", end_sessions)
    ended = nights.run(home, **place)
    refused_clearly(ended, 4, "read-only transaction")
    assert check_sound(home, registry=mlflow.url) == []
    writable = "alter database mlflow set default_transaction_read_only = off"
    database.tell("set default_transaction_read_only = off", writable, end_sessions)

    # Trained models are kept, so a resumed night makes fewer steps.
    ended = nights.run(home, fault=Fault(at=rng.randint(1, LATEST // 3), kill=(database.pid,)), **place)
    refused_clearly(ended, 4, "cannot be used")
    assert mlflow.url in ended.err
    assert "epoch" not in ended.err
    database.start_again()
    assert check_sound(home, registry=mlflow.url) == []
    assert nights.run(home, **place).night["verdict"] == "promoted"

    bring(home, 6, first=100)
    before = inputs(home)
    ended = nights.run(home, fault=Fault(at=rng.randint(1, LATEST // 2), kill=mlflow.pids()), **place)
    refused_clearly(ended, 4, "cannot be used")
    mlflow.start_again()
    assert check_sound(home, registry=mlflow.url) == ["1"]
    assert nights.run(home, **place).night["champion_before"] == "1"
    assert check_sound(home, registry=mlflow.url)[0] == "1"
    assert inputs(home) == before
