"""New cells start a night: many notices become one run, and no message from the bucket is lost."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest

from flows.unattended.notify import notify, relay
from infra.bucket_events import Queue, created_keys
from infra.prefect_api import PrefectServer
from infra.settings.settings import Settings
from validation.errors import Unreachable

pytestmark = pytest.mark.thorough

NOON = datetime(2026, 1, 2, 12, 0, 30, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


class FakePrefect(PrefectServer):
    """Stores runs like the real server: one per idempotency key."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:1/api")
        self.kept: list[dict[str, Any]] = []
        self.away = False

    def create_run(
        self,
        deployment: str,
        *,
        key: str | None = None,
        parameters: dict[str, Any] | None = None,
        at: datetime | None = None,
        tags: Iterable[str] = (),
    ) -> dict[str, Any]:
        assert (deployment, parameters) == ("retrain/nightly", None)
        if self.away:
            raise Unreachable("away")
        for run in self.kept:
            if run["key"] == key:
                return run
        run = {"key": key, "at": at, "tags": list(tags), "state_type": "SCHEDULED", "name": f"night {len(self.kept)}"}
        self.kept.append({**run, "expected_start_time": str(at)})
        return self.kept[-1]

    def runs(
        self,
        *,
        deployment: str | None = None,
        states: Iterable[str] = (),
        tags: Iterable[str] = (),
        key: str | None = None,
        limit: int = 200,
    ) -> list[dict[str, Any]]:
        states, tags = set(states), set(tags)
        return [run for run in self.kept if run["state_type"] in states and tags <= set(run["tags"])]


@pytest.fixture
def server() -> FakePrefect:
    return FakePrefect()


@pytest.fixture
def settings(home: Path) -> Settings:
    return Settings(home=home)


def test_all_notices_until_a_night_begins_are_that_nights(server: FakePrefect, settings: Settings) -> None:
    # Also across the edge of a time window, where the key alone would allow two.
    first = notify(server, settings, now=NOON)
    assert [notify(server, settings, now=NOON + n * MINUTE) for n in (0, 1, 9)] == [first] * 3
    assert first["at"] == NOON + 10 * MINUTE


def test_cells_that_come_after_a_night_began_get_another(server: FakePrefect, settings: Settings) -> None:
    notify(server, settings, now=NOON)["state_type"] = "RUNNING"
    second = notify(server, settings, now=NOON + 11 * MINUTE)
    assert second["at"] == NOON + 21 * MINUTE
    assert len(server.kept) == 2


def test_a_night_that_was_cancelled_by_hand_does_not_swallow_a_notice(server: FakePrefect, settings: Settings) -> None:
    notify(server, settings, now=NOON)["state_type"] = "CANCELLED"
    assert notify(server, settings, now=NOON + MINUTE)["state_type"] == "SCHEDULED"


def test_two_notices_at_the_same_moment_are_one_run(
    server: FakePrefect, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "runs", lambda **_: [])  # neither sees the run of the other yet
    assert notify(server, settings, now=NOON) is notify(server, settings, now=NOON)


S3 = {"Records": [{"eventName": "ObjectCreated:Put", "s3": {"object": {"key": "p/labeled/Uninfected/a+b%C3%A4.png"}}}]}
BRIDGE = {"detail-type": "Object Created", "detail": {"object": {"key": "labeled/a+b.png"}}}


@pytest.mark.parametrize(
    ("body", "keys"),
    [
        (json.dumps(S3), ["p/labeled/Uninfected/a bä.png"]),
        (json.dumps({"Message": json.dumps(S3)}), ["p/labeled/Uninfected/a bä.png"]),
        (json.dumps(BRIDGE), ["labeled/a+b.png"]),
        (json.dumps({"Records": [{"eventName": "ObjectRemoved:Delete", "s3": {"object": {"key": "labeled/x"}}}]}), []),
        (json.dumps({"Event": "s3:TestEvent"}), []),
        ("no json", []),
        ("[1]", []),
        (json.dumps({"Records": [{}, None, {"eventName": 3}]}), []),
        (json.dumps({"detail": {"object": None}, "detail-type": "Object Created"}), []),
    ],
)
def test_what_messages_say(body: str, keys: list[str]) -> None:
    assert list(created_keys(body)) == keys


@pytest.fixture
def queue_settings(moto_endpoint: str, fake_aws: None, home: Path) -> Settings:
    client = boto3.session.Session().client("sqs", endpoint_url=moto_endpoint, region_name="us-east-1")
    url = client.create_queue(QueueName=f"cells-{uuid.uuid4().hex[:8]}")["QueueUrl"]
    client.close()
    events = {"queue": url, "queue_endpoint": moto_endpoint, "queue_region": "us-east-1"}
    return Settings(home=home, events=events)


@pytest.fixture
def client(moto_endpoint: str, fake_aws: None) -> Iterator[Any]:
    made = boto3.session.Session().client("sqs", endpoint_url=moto_endpoint, region_name="us-east-1")
    yield made
    made.close()


def left(client: Any, settings: Settings) -> int:
    """Return the number of messages, hidden ones included."""
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    answer = client.get_queue_attributes(QueueUrl=settings.events.queue, AttributeNames=names)["Attributes"]
    return sum(int(answer[name]) for name in names)


def test_a_bridge_makes_one_run_of_many_messages_and_deletes_them(
    server: FakePrefect, queue_settings: Settings, client: Any
) -> None:
    for body in (S3, BRIDGE, {"Event": "s3:TestEvent"}, "rubbish"):
        client.send_message(QueueUrl=queue_settings.events.queue, MessageBody=json.dumps(body))
    queue = Queue(queue_settings.events)
    while left(client, queue_settings):
        relay(queue, server, queue_settings, wait_seconds=0)
    assert len(server.kept) == 1


def test_a_message_about_something_else_starts_nothing(
    server: FakePrefect, queue_settings: Settings, client: Any
) -> None:
    body = json.dumps(S3).replace("labeled", "retraining")
    client.send_message(QueueUrl=queue_settings.events.queue, MessageBody=body)
    assert relay(Queue(queue_settings.events), server, queue_settings, wait_seconds=0) is None
    assert (left(client, queue_settings), server.kept) == (0, [])


def test_a_message_stays_until_its_run_exists(server: FakePrefect, queue_settings: Settings, client: Any) -> None:
    client.send_message(QueueUrl=queue_settings.events.queue, MessageBody=json.dumps(S3))
    server.away = True
    with pytest.raises(Unreachable):
        relay(Queue(queue_settings.events), server, queue_settings, wait_seconds=0)
    assert left(client, queue_settings) == 1


def test_a_missing_queue_is_a_clear_error(server: FakePrefect, queue_settings: Settings) -> None:
    events = queue_settings.events.model_copy(update={"queue": f"{queue_settings.events.queue}-no"})
    with pytest.raises(Unreachable, match="does not answer"):
        relay(Queue(events), server, queue_settings, wait_seconds=0)
