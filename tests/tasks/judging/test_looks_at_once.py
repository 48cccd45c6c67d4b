"""Many machines that take looks at once, in real processes, are never granted more than the budget allows."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from infra.registry.registry import Registry
from infra.store.folder import FolderStore
from infra.store.s3 import S3Store
from tasks.context import Context
from tasks.judging.ledger import read_ledger
from tests.builders import context_over, registry_in
from tests.rivals import Rivals, looking
from tests.servers import databases

pytestmark = pytest.mark.thorough

MACHINES, EACH, ALLOWED = 6, 4, 9


@pytest.fixture(scope="module")
def rivals(empty_registry: Path) -> Iterator[Rivals]:
    running = Rivals(empty_registry)
    yield running
    running.close()


def check_never_too_many(rivals: Rivals, folder: Path, values: dict[str, Any], context: Context) -> None:
    """Six machines, each with its own home, want four looks each; one pair is the same for all. Nine are allowed."""
    wanted = [[f"{machine}-{number}" for number in range(EACH - 1)] + ["shared"] for machine in range(MACHINES)]
    identity = {name: os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY") if name in os.environ}
    jobs = [
        looking({"home": str(folder / f"machine {machine}"), "gate": {"looks": ALLOWED}, **values}, names, identity)
        for machine, names in enumerate(wanted)
    ]
    outcomes = rivals.run(*jobs, together=True)
    granted = [look for outcome in outcomes for look in json.loads(outcome.said) if look]
    assert sorted({look["challenger"]: look["number"] for look in granted}.values()) == list(range(1, ALLOWED + 1))
    entries = read_ledger(context, Registry(context.settings))
    assert [(entry.number, entry.problem) for entry in entries] == [(n, "") for n in range(1, ALLOWED + 1)]


def test_on_sqlite_and_a_folder(rivals: Rivals, tmp_path: Path, empty_registry: Path) -> None:
    registry_in(tmp_path, empty_registry)
    store = FolderStore(tmp_path / "store")
    values = {"store": store.uri, "registry": f"sqlite:///{tmp_path / 'mlflow.db'}"}
    check_never_too_many(rivals, tmp_path, values, context_over(store, tmp_path, registry=values["registry"]))


@pytest.mark.server
def test_on_postgresql_and_a_bucket(
    rivals: Rivals, tmp_path: Path, postgres: str, moto_endpoint: str, fake_aws: None
) -> None:
    del fake_aws
    client = boto3.session.Session().client("s3", endpoint_url=moto_endpoint, region_name="us-east-1")
    client.create_bucket(Bucket="looks")
    client.close()
    with databases(postgres, "looks"):
        values = {
            "store": "s3://looks/cells",
            "store_endpoint": moto_endpoint,
            "registry": f"{postgres}/looks",
            "registry_artifacts": "s3://looks/mlflow",
        }
        given = {name: values[name] for name in ("registry", "registry_artifacts")}
        context = context_over(S3Store("s3://looks/cells", endpoint=moto_endpoint), tmp_path, **given)
        Registry(context.settings)  # its tables are made once, before all come
        check_never_too_many(rivals, tmp_path, values, context)
