"""Notifications of new objects in a bucket, from an SQS queue (S3 -> SQS, directly or through EventBridge or SNS)."""

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

MOST_AT_ONCE = 10  # SQS's own limit


@dataclass(frozen=True)
class Batch:
    """The messages of one poll."""

    receipts: tuple[str, ...]
    new_cells: int


class Queue:
    """An SQS queue of notifications. Every method raises Unreachable when it does not answer or refuses access."""

    def __init__(self, settings: EventSettings) -> None:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        self._url = settings.queue
        # A long poll takes up to 20 s to answer.
        config = Config(connect_timeout=5, read_timeout=40, retries={"total_max_attempts": 3, "mode": "standard"})
        try:
            self._client = boto3.client(
                "sqs", endpoint_url=settings.queue_endpoint, region_name=settings.queue_region, config=config
            )
        except BotoCoreError as error:
            raise Unreachable(f"cannot sign in to {self._url}: {error}", "see RETRAIN_EVENTS__QUEUE_REGION") from error

    def receive(self, wait_seconds: int) -> Batch:
        """Wait up to ``wait_seconds`` for messages; return them, invisible to other readers for two minutes."""
        answer = self._call(
            "receive_message", MaxNumberOfMessages=MOST_AT_ONCE, WaitTimeSeconds=wait_seconds, VisibilityTimeout=120
        )
        messages = answer.get("Messages", [])
        keys = [key for message in messages for key in created_keys(message["Body"])]
        # The store's prefix within its bucket comes first, if it has one.
        cells = sum(1 for key in keys if key.startswith(LABELED) or f"/{LABELED}" in key)
        return Batch(tuple(message["ReceiptHandle"] for message in messages), cells)

    def delete(self, batch: Batch) -> None:
        """Delete the messages of a batch."""
        if batch.receipts:
            entries = [{"Id": str(n), "ReceiptHandle": receipt} for n, receipt in enumerate(batch.receipts)]
            answer = self._call("delete_message_batch", Entries=entries)
            for failed in answer.get("Failed", []):
                log.warning("a message was not deleted and will be delivered again: %s", failed.get("Message"))

    def _call(self, name: str, **arguments: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return getattr(self._client, name)(QueueUrl=self._url, **arguments)
        except (BotoCoreError, ClientError) as error:
            raise Unreachable(
                f"the queue {self._url} does not answer: {error}", "see RETRAIN_EVENTS__QUEUE and the AWS identity"
            ) from error


def created_keys(body: str) -> Iterator[str]:
    """Yield the keys of the created objects that a message names; nothing for any other message."""
    try:
        message = json.loads(body)
        if isinstance(message, dict) and isinstance(message.get("Message"), str):
            message = json.loads(message["Message"])  # through SNS
    except ValueError:
        log.warning("ignored a message that is not valid JSON: %.80r", body)
        return
    if not isinstance(message, dict):
        return
    if isinstance(detail := message.get("detail"), dict):  # through EventBridge; its keys are not encoded
        key = (detail.get("object") or {}).get("key")
        if message.get("detail-type") == "Object Created" and isinstance(key, str):
            yield key
        return
    for record in message.get("Records") or []:
        try:
            if record["eventName"].startswith("ObjectCreated:"):
                yield unquote_plus(record["s3"]["object"]["key"])
        except (KeyError, TypeError, AttributeError):
            log.warning("ignored a record of a message: %.80r", record)
