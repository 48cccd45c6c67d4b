"""Two promotions at once have one winner, and a promotion that is killed anywhere leaves the old champion or the new.

Real processes, really at once and really killed: on SQLite and a folder, and on an `mlflow server` over PostgreSQL with
a bucket for its files and for the store.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import boto3
import pytest

from infra.registry.registry import Registry
from infra.settings.settings import Settings
from infra.store.keys import MODEL_NAME
from tasks.champion.history import history, reconcile_champion
from tasks.context import Context
from tasks.promote import promote
from tests.builders import channel_model, made_up_candidate, made_up_decision, registry_in, small_settings
from tests.rivals import Outcome, Rivals, promotion
from tests.servers import databases, mlflow_server
from validation.records import Candidate, ChampionRef, Decision

MODEL = channel_model()

pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("tried_here", "evidence_believed")]
# Each writes to the database, the bucket or the store; a kill falls between two of them, or within one.
KILLS = [
    ("mlflow.MlflowClient.create_run", "after"),
    ("mlflow.onnx.log_model", "after"),
    ("mlflow.MlflowClient.create_model_version", "after"),
    ("infra.registry.registry.Registry.model_bytes", "after"),
    ("mlflow.MlflowClient.log_param", "before"),
    ("mlflow.MlflowClient.log_param", "after"),
    ("tasks.champion.history._copy", "after"),
    ("mlflow.MlflowClient.set_registered_model_alias", "after"),
]


@dataclass
class Place:
    """A store and a registry that several machines use; each has its own home folder, and so its own lock."""

    folder: Path
    values: dict[str, Any]
    rivals: Rivals
    identity: dict[str, str] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def __post_init__(self) -> None:
        self.context = Context.open(self.settings("watcher"))
        self.registry = Registry(self.context.settings)

    def settings(self, machine: str) -> Settings:
        return small_settings(self.folder / machine, **self.values)

    def job(self, machine: str, decision: Decision, kill: tuple[str, str] | None = None) -> dict[str, Any]:
        settings = {"home": str(self.folder / machine), **self.values}
        return promotion(settings, decision.id, kill=kill, identity=self.identity)

    def challenge(self, champion: ChampionRef | None) -> tuple[Decision, Candidate]:
        """Store a decision to promote a candidate that was compared with ``champion``."""
        number = next(self.numbers)
        candidate = made_up_candidate(MODEL, id_=f"c{number:023d}")
        decision = made_up_decision(f"d{number:023d}", before=champion).model_copy(
            update={"challenger": candidate.id, "sentence": f"Challenger {number} is better"}
        )
        self.context.store.put(candidate.model_key, MODEL)
        self.context.records.save(candidate, candidate.id)
        self.context.records.save(decision, decision.id)
        return decision, candidate

    def registered(self, champion: ChampionRef) -> Decision:
        """Store a decision whose challenger a killed night has registered already, which costs no time here."""
        decision, candidate = self.challenge(champion)
        client = self.registry._client
        like = client.get_model_version(MODEL_NAME, champion.version)
        tags = {**like.tags, "decision": decision.id, "candidate": candidate.id}
        model = like.source.removeprefix("models:/")
        self.registry._selected()
        client.create_model_version(MODEL_NAME, source=like.source, run_id=like.run_id, model_id=model, tags=tags)
        return decision

    def versions_of(self, decision: Decision) -> list[str]:
        versions = self.registry._client.search_model_versions(f"name='{MODEL_NAME}'")
        return [str(version.version) for version in versions if version.tags["decision"] == decision.id]

    def first_champion(self) -> ChampionRef:
        decision, candidate = self.challenge(None)
        champion = promote(self.context, decision, candidate, self.registry)
        assert champion is not None
        return champion


@pytest.fixture(scope="module")
def rivals(empty_registry: Path) -> Iterator[Rivals]:
    running = Rivals(empty_registry)
    yield running
    running.close()


@pytest.fixture
def sqlite(tmp_path: Path, empty_registry: Path, rivals: Rivals) -> Place:
    registry_in(tmp_path / "watcher", empty_registry)
    values = {
        "store": (tmp_path / "store").as_uri(),
        "registry": f"sqlite:///{tmp_path / 'watcher' / 'mlflow.db'}",
        "registry_artifacts": (tmp_path / "artifacts").as_uri(),
    }
    return Place(tmp_path, values, rivals)


@pytest.fixture
def server(tmp_path: Path, moto_endpoint: str, fake_aws: None, rivals: Rivals, postgres: str) -> Iterator[Place]:
    client = boto3.session.Session().client("s3", endpoint_url=moto_endpoint, region_name="us-east-1")
    client.create_bucket(Bucket="production")
    client.close()
    # The driver is named: SQLAlchemy means another one by "postgresql".
    backend = postgres.replace("postgresql:", "postgresql+psycopg2:") + "/rivals"
    with (
        databases(postgres, "rivals"),
        mlflow_server(backend, "s3://production/mlflow", moto_endpoint, tmp_path / "mlflow.log") as url,
    ):
        values = {"store": "s3://production/cells", "store_endpoint": moto_endpoint, "registry": url}
        identity = {name: os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
        yield Place(tmp_path, values, rivals, identity)


def check_one_wins(place: Place, outcomes: list[Outcome], before: int) -> None:
    won = [outcome for outcome in outcomes if outcome.said == "promoted"]
    lost = [outcome for outcome in outcomes if outcome.said != "promoted"]
    assert len(won) == len(lost) == 1, outcomes
    assert lost[0].said.startswith("ChampionChanged: the champion has changed since it was evaluated"), outcomes
    entries = history(place.context)
    champion = place.registry.champion()
    assert champion is not None
    assert len(entries) == before + 1
    assert champion.version == entries[-1].version_after == won[0].version


def race(place: Place, rounds: int) -> None:
    for number in range(rounds):
        champion = place.registry.champion()
        before = len(history(place.context))
        if champion is None or number < 2:
            decisions = [place.challenge(champion)[0] for _ in range(2)]
        else:
            decisions = [place.registered(champion) for _ in range(2)]
        jobs = [place.job(machine, decision) for machine, decision in zip("ab", decisions, strict=True)]
        # In every other round each waits until both are about to write the deciding entry: no matter of chance, nor of
        # many rounds.
        together = number % 2 == 0
        outcomes = place.rivals.run(*jobs, together=together)
        check_one_wins(place, outcomes, before)
        if together:
            # Only the loser of the deciding write learns who won.
            assert any("(process " in outcome.said for outcome in outcomes), outcomes


def race_with_one_decision(place: Place) -> None:
    """Two machines carry out the same decision: whoever comes second made the same champion, under one number."""
    before, (decision, candidate) = len(history(place.context)), place.challenge(place.registry.champion())
    outcomes = place.rivals.run(*(place.job(machine, decision) for machine in "ab"), together=True)
    (entry,) = history(place.context)[before:]
    assert [outcome[1:] for outcome in outcomes] == [("promoted", entry.version_after)] * 2
    champion = place.registry.champion()
    assert champion is not None
    assert (champion.version, champion.candidate) == (entry.version_after, candidate.id)


def kill_everywhere(place: Place, kills: list[tuple[str, str]]) -> None:
    for kill in kills:
        old = place.registry.champion()
        assert old is not None
        before = len(history(place.context))
        decision, candidate = place.challenge(old)
        (killed,) = place.rivals.run(place.job("a", decision, kill))
        assert killed.signal == 9, (kill, killed)
        seen = place.registry.champion()
        assert seen is not None
        assert seen == old or seen.candidate == candidate.id
        # The next command, from another machine.
        settled = reconcile_champion(place.context, place.registry)
        entries = history(place.context)
        assert settled == place.registry.champion()
        assert settled is not None
        assert entries[-1].version_after == settled.version
        assert len(entries) - before == (settled.candidate == candidate.id)
        # The night is run again.
        (again,) = place.rivals.run(place.job("a", decision))
        assert again.said == "promoted", (kill, again)
        champion = place.registry.champion()
        assert champion is not None
        assert champion.candidate == candidate.id
        assert place.versions_of(decision) == [champion.version]
        assert [entry.decision for entry in history(place.context)][before:] == [decision.id]
    assert not running(place)


def running(place: Place) -> list[str]:
    """Names of MLflow's runs that look as if they were still going on."""
    client = place.registry._client
    runs = client.search_runs([place.registry._experiment()], "attributes.status = 'RUNNING'")
    return [run.info.run_name for run in runs]


def test_of_two_promotions_at_once_one_wins_on_sqlite(sqlite: Place) -> None:
    race(sqlite, 8)
    race_with_one_decision(sqlite)


@pytest.mark.longest
def test_a_promotion_killed_anywhere_is_all_or_nothing_on_sqlite(sqlite: Place) -> None:
    sqlite.first_champion()
    kill_everywhere(sqlite, KILLS)


@pytest.mark.longest
def test_the_first_champion_killed_at_every_step(sqlite: Place) -> None:
    decision, candidate = sqlite.challenge(None)
    for kill in [("mlflow.MlflowClient.create_registered_model", when) for when in ("before", "after")]:
        (killed,) = sqlite.rivals.run(sqlite.job("a", decision, kill))
        assert killed.signal == 9, killed
        assert reconcile_champion(sqlite.context, sqlite.registry) is None
        assert history(sqlite.context) == []
    (again,) = sqlite.rivals.run(sqlite.job("a", decision))
    assert (again.said, again.version) == ("promoted", "1")
    champion = sqlite.registry.champion()
    assert champion is not None
    assert champion.candidate == candidate.id


@pytest.mark.longest
@pytest.mark.server
def test_a_server_over_postgresql_with_a_bucket(server: Place) -> None:
    race(server, 4)
    race_with_one_decision(server)
    kill_everywhere(server, KILLS[2:8:2])
    champion = server.registry.champion()
    assert champion is not None
    # The file comes from the bucket, through the server: no client needs the bucket's credentials.
    assert server.registry.model_bytes(champion) == MODEL
    version = server.registry._client.get_model_version(MODEL_NAME, "1")
    run = server.registry._client.get_run(version.run_id)
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
