"""Buckets reached through obstore: Google Cloud (gs://) and Azure (az://).

obstore retries what fails on the way (5xx, resets, silence, cut bodies: each measured) with exponential backoff and
jitter. What it cannot know, that the bytes are the wrong ones, is for the stores here to notice and to ask again.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar
from urllib.parse import urlsplit

from infra.settings.groups import WireSettings
from infra.store.base import Fetched, ObjectInfo, Store, missing, refuse_odd
from infra.store.keys import is_odd
from validation.errors import ObjectMissing, SettingsError, StoreUnreachable

T = TypeVar("T")


class WrongBytes(StoreUnreachable):
    """An answer that came whole and holds other bytes than the server says."""


class ObstoreStore(Store):
    """A bucket reached through obstore alone: Google Cloud (gs://) and Azure (az://)."""

    def __init__(self, uri: str, *, wire: WireSettings | None = None) -> None:
        import obstore.store

        self.uri = uri
        self.wire = wire or WireSettings()
        _refuse_impossible(uri)
        try:
            self._data: Any = obstore.store.from_url(uri, **wire_options(self.wire))
        except Exception as error:
            raise SettingsError(
                f"cannot open store {uri}: {first_line(error)}",
                "check RETRAIN_STORE, and the account's variables (GOOGLE_..., AZURE_STORAGE_...)",
            ) from error

    def check(self) -> None:
        next(self.list("retraining/"), None)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        import obstore

        # obstore lists whole folders: "a/b" does not find "a/bc".
        folder = prefix.rpartition("/")[0]
        chunks = iter(translated(self.uri, lambda: obstore.list(self._data, prefix=folder)))
        while (chunk := translated(self.uri, lambda: next(chunks, None))) is not None:
            for meta in chunk:
                if meta["path"].startswith(prefix):
                    yield ObjectInfo(meta["path"], meta["size"], _etag(meta))

    def fetch(self, key: str) -> Fetched:
        import obstore

        def read() -> Fetched:
            answer = obstore.get(self._data, key)
            meta = answer.meta
            data = bytes(answer.bytes())
            if len(data) != meta["size"]:
                raise WrongBytes(f"{self.uri} gave {len(data)} of the {meta['size']} bytes of {key!r}", _AGAIN)
            return Fetched(data, _etag(meta))

        if is_odd(key):
            raise missing(self.uri, key)
        return self._again(lambda: translated(self.uri, read, key))

    def stat(self, key: str) -> ObjectInfo | None:
        import obstore

        if is_odd(key):
            return None
        try:
            meta = translated(self.uri, lambda: obstore.head(self._data, key), key)
        except ObjectMissing:
            return None
        return ObjectInfo(key, meta["size"], _etag(meta))

    def put(self, key: str, data: bytes) -> None:
        import obstore

        refuse_odd(self.uri, key)
        translated(self.uri, lambda: obstore.put(self._data, key, data), key)

    def _remove(self, key: str) -> None:
        import obstore

        with suppress(ObjectMissing):
            translated(self.uri, lambda: obstore.delete(self._data, key), key)

    def exists(self, key: str) -> bool:
        return ObstoreStore.stat(self, key) is not None

    def _again(self, call: Callable[[], T]) -> T:
        """Run ``call``; ask again, after a while, when the bytes that came are the wrong ones."""
        for attempt in range(self.wire.retries):
            try:
                return call()
            except WrongBytes:
                _wait(self.wire, attempt)
        return call()


def _wait(wire: WireSettings, attempt: int) -> None:
    longest = min(wire.longest_wait_seconds, wire.first_wait_seconds * 3**attempt)
    # Jitter, so that many clients do not come back at the same moment.
    time.sleep(random.uniform(longest / 2, longest))  # noqa: S311 - no secret


_AGAIN = "it is tried again tomorrow; if it stays so, look at the object and at what lies between here and the server"


def _etag(meta: Any) -> str:
    return (meta["e_tag"] or str(meta["last_modified"])).strip('"')


def _refuse_impossible(uri: str) -> None:
    parts = urlsplit(uri)
    if parts.scheme in ("gs", "az") and not parts.netloc:
        raise SettingsError(
            f"store {uri!r} names no bucket",
            "expected gs://BUCKET/PREFIX, or az://CONTAINER/PREFIX with the account set",
        )


def wire_options(wire: WireSettings) -> dict[str, Any]:
    """Return obstore's options for timeouts and retries."""
    return {
        # A timeout for the whole request would fail a large model on a slow line: limit the silence instead.
        "client_options": {
            "allow_http": True,
            "connect_timeout": "3s",
            "read_timeout": f"{wire.silence_seconds * 1000:.0f}ms",
            "timeout": "10m",
        },
        # obstore's own ten retries within 3 minutes keep a night waiting for a store that is gone.
        "retry_config": {
            "max_retries": wire.retries,
            "backoff": {
                "init_backoff": timedelta(seconds=wire.first_wait_seconds),
                "max_backoff": timedelta(seconds=wire.longest_wait_seconds),
                "base": 3,
            },
            "retry_timeout": timedelta(seconds=max(60.0, 3 * wire.silence_seconds)),
        },
    }


def translated(uri: str, call: Callable[[], T], key: str = "") -> T:
    """Run an obstore call; its errors come back as ours."""
    from obstore import exceptions

    try:
        return call()
    except (exceptions.NotFoundError, FileNotFoundError) as error:
        if "NoSuchBucket" in str(error) or "ContainerNotFound" in str(error):
            raise StoreUnreachable(f"no bucket at {uri}", "create it, or correct RETRAIN_STORE") from error
        raise missing(uri, key) from error
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, PermissionError) as error:
        raise StoreUnreachable(f"{uri} refused {key!r}", "check the credentials and the bucket's policy") from error
    except (exceptions.BaseError, OSError) as error:
        raise StoreUnreachable(f"cannot reach {uri}: {first_line(error)}", "check the network and the store") from error


# Azure's shared access signatures and presigned links are in the query: whoever reads a log must not get in by it.
_QUERY = re.compile(r"(https?://[^\s?\"')]*)\?[^\s\"')]*")


def first_line(error: Exception) -> str:
    """Return the first line of what a library says, without the part of an address that may be a secret."""
    lines = str(error).strip().splitlines()
    return _QUERY.sub(r"\1?...", lines[0])[:300] if lines else type(error).__name__
