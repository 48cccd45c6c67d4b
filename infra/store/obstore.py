"""Buckets reached through obstore: Google Cloud (gs://) and Azure (az://).

obstore retries failed requests (5xx, resets, timeouts, truncated bodies: each measured) with exponential backoff and
jitter. It cannot detect wrong bytes: the stores here do, and ask again.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from functools import partial
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import urlsplit

from infra.settings.groups import WireSettings
from infra.store.base import Fetched, ObjectInfo, Store, missing, refuse_odd
from infra.store.keys import is_odd
from infra.store.refusals import Refusal, refusal_in
from validation.errors import ObjectMissing, SettingsError, StoreUnreachable

T = TypeVar("T")

log = logging.getLogger(__name__)


class WrongBytes(StoreUnreachable):
    """A complete answer with other bytes than the server states."""


class ObstoreStore(Store):
    """A bucket reached through obstore alone: Google Cloud (gs://) and Azure (az://)."""

    # Until the server says otherwise.
    _writes_conditionally = True

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

        # obstore lists whole folders: "a/b" does not match "a/bc".
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
                raise WrongBytes(f"{self.uri} returned {len(data)} of the {meta['size']} bytes of {key!r}", _AGAIN)
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

    def create(self, key: str, data: bytes) -> bool:
        import obstore
        from obstore import exceptions

        refuse_odd(self.uri, key)
        # Asked first: a server that overlooks the condition would overwrite.
        if self.exists(key):
            return False
        if self._writes_conditionally:
            try:
                obstore.put(self._data, key, data, mode="create")
            except exceptions.AlreadyExistsError:
                return False
            except exceptions.BaseError as error:
                if not _has_no_conditions(error):
                    translated(self.uri, partial(_raise, error), key)
                log.warning(
                    "%s knows no conditional writes (%s): of two machines that write the same at once the later counts",
                    *(self.uri, refusal_in(str(error)) or first_line(error)),
                )
                self._writes_conditionally = False
            else:
                return True
        self.put(key, data)
        return True

    def _remove(self, key: str) -> None:
        import obstore

        with suppress(ObjectMissing):
            translated(self.uri, lambda: obstore.delete(self._data, key), key)

    def exists(self, key: str) -> bool:
        return ObstoreStore.stat(self, key) is not None

    def _again(self, call: Callable[[], T]) -> T:
        """Return ``call()``, with retries for wrong bytes."""
        for attempt in range(self.wire.retries):
            try:
                return call()
            except WrongBytes:
                longest = min(self.wire.longest_wait_seconds, self.wire.first_wait_seconds * 3**attempt)
                # With jitter, so that many clients do not retry at the same moment.
                time.sleep(random.uniform(longest / 2, longest))  # noqa: S311 - not a secret
        return call()


PRIVATE_CA = (
    "a private authority? AWS_CA_BUNDLE (s3://) or SSL_CERT_FILE (gs://, az://) names a PEM file with its certificate"
)
_AGAIN = "the next night tries again; if it persists, check the object and every proxy between here and the server"


def _etag(meta: Any) -> str:
    return (meta["e_tag"] or str(meta["last_modified"])).strip('"')


def _refuse_impossible(uri: str) -> None:
    parts = urlsplit(uri)
    if parts.scheme in ("gs", "az") and not parts.netloc:
        raise SettingsError(
            f"store {uri!r} names no bucket",
            "expected gs://BUCKET/PREFIX, or az://CONTAINER/PREFIX with the account set",
        )


def wire_options(wire: WireSettings, **more: Any) -> dict[str, Any]:
    """Return obstore's options for timeouts and retries, and ``more`` of its client's."""
    return {
        # A timeout of the whole request would fail a large model on a slow line: limit the time between bytes instead.
        "client_options": {
            "allow_http": True,
            "connect_timeout": "3s",
            "read_timeout": f"{wire.silence_seconds * 1000:.0f}ms",
            "timeout": "10m",
            **more,
        },
        # obstore's default of ten retries within 3 minutes would delay a night whose store is gone.
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
    """Run an obstore call and translate its errors."""
    from obstore import exceptions

    try:
        return call()
    except (exceptions.NotFoundError, FileNotFoundError) as error:
        if "NoSuchBucket" in str(error) or "ContainerNotFound" in str(error):
            raise StoreUnreachable(f"no bucket at {uri}", "create it, or correct RETRAIN_STORE") from error
        raise missing(uri, key) from error
    except (exceptions.BaseError, OSError) as error:
        refusal = refusal_in(str(error))
        denied = isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError | PermissionError)
        if denied or (refusal and not refusal.is_of_the_server):
            refusal = refusal or Refusal("", "")
            raise StoreUnreachable(f"{uri} refused {key!r}: {refusal}", refusal.hint()) from error
        # Only the debugging text has the cause.
        untrusted = re.search(r"InvalidCertificate\(\s*(\w+)", str(error))
        raise StoreUnreachable(
            f"cannot reach {uri}: {first_line(error)}" + (f" (its certificate: {untrusted[1]})" if untrusted else ""),
            PRIVATE_CA if untrusted else "check the network and the store",
        ) from error


def _has_no_conditions(error: Exception) -> bool:
    """Whether a server refused a write because it had a condition."""
    from obstore import exceptions

    refusal = refusal_in(str(error))
    return isinstance(error, exceptions.NotSupportedError) or (
        refusal is not None and (refusal.code == "NotImplemented" or refusal.status == HTTPStatus.NOT_IMPLEMENTED)
    )


def _raise(error: Exception) -> None:
    raise error


# The query may contain a signature that grants access (Azure's, presigned links), which must not be logged.
_QUERY = re.compile(r"(https?://[^\s?\"')]*)\?[^\s\"')]*")


def first_line(error: Exception) -> str:
    """Return the first line of a library's error, without the part of an address that may be a secret."""
    lines = str(error).strip().splitlines()
    return _QUERY.sub(r"\1?...", lines[0])[:300] if lines else type(error).__name__
