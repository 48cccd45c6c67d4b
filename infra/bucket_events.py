"""What a bucket tells about new objects, by way of an SQS queue (S3 -> SQS, directly or through EventBridge or SNS)."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus

from infra.settings.groups import EventSettings
from infra.store.keys import LABELED
from validation.errors import Unreachable

log = logging.getLogger(__name__)

MOST_AT_ONCE = 10  # what SQS gives in one answer


@dataclass(frozen=True)
class Batch:
    """What one look at the queue brought."""

    receipts: tuple[str, ...]
    new_cells: int


class Queue:
    """An SQS queue that is told of new objects.

    Every method raises Unreachable when the queue does not answer or refuses us.
    """

    def __init__(self, settings: EventSettings) -> None:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        self._url = settings.queue
        # A long poll is silent for up to 20 s.
        config = Config(connect_timeout=5, read_timeout=40, retries={"total_max_attempts": 3, "mode": "standard"})
        try:
            self._client = boto3.client(
                "sqs", endpoint_url=settings.queue_endpoint, region_name=settings.queue_region, config=config
            )
        except BotoCoreError as error:
            raise Unreachable(f"cannot sign in to {self._url}: {error}", "see RETRAIN_EVENTS__QUEUE_REGION") from error

    def receive(self, wait_seconds: int) -> Batch:
        """Wait for messages up to ``wait_seconds``; return those that are there, hidden from others for a while."""
        answer = self._call(
            "receive_message", MaxNumberOfMessages=MOST_AT_ONCE, WaitTimeSeconds=wait_seconds, VisibilityTimeout=120
        )
        messages = answer.get("Messages", [])
        keys = [key for message in messages for key in created_keys(message["Body"])]
        # The prefix of the store within its bucket is before it, so it is looked for anywhere.
        cells = sum(1 for key in keys if key.startswith(LABELED) or f"/{LABELED}" in key)
        return Batch(tuple(message["ReceiptHandle"] for message in messages), cells)

    def delete(self, batch: Batch) -> None:
        """Delete the messages of a batch."""
        if batch.receipts:
            entries = [{"Id": str(n), "ReceiptHandle": receipt} for n, receipt in enumerate(batch.receipts)]
            answer = self._call("delete_message_batch", Entries=entries)
            for failed in answer.get("Failed", []):
                log.warning("a message was not deleted and will come again: %s", failed.get("Message"))

    def _call(self, name: str, **arguments: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return getattr(self._client, name)(QueueUrl=self._url, **arguments)
        except (BotoCoreError, ClientError) as error:
            raise Unreachable(
                f"the queue {self._url} does not answer: {error}", "see RETRAIN_EVENTS__QUEUE and the AWS identity"
            ) from error


def created_keys(body: str) -> Iterator[str]:
    """Yield the keys of objects that a message says were created; nothing for anything else, whatever it is."""
    try:
        told = json.loads(body)
        if isinstance(told, dict) and isinstance(told.get("Message"), str):
            told = json.loads(told["Message"])  # by way of SNS
    except ValueError:
        log.warning("a message that is no JSON was left out: %.80r", body)
        return
    if not isinstance(told, dict):
        return
    if isinstance(detail := told.get("detail"), dict):  # by way of EventBridge; its keys are not encoded
        if told.get("detail-type") == "Object Created" and isinstance(
            key := (detail.get("object") or {}).get("key"), str
        ):
            yield key
        return
    for record in told.get("Records") or []:
        try:
            if record["eventName"].startswith("ObjectCreated:"):
                yield unquote_plus(record["s3"]["object"]["key"])
        except (KeyError, TypeError, AttributeError):
            log.warning("a record of a message was left out: %.80r", record)
