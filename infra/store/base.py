"""The contract of an object store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from infra.store.keys import OURS, is_odd
from validation.errors import ObjectMissing, RetrainError


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One listed object. ``etag`` changes whenever the content may have changed; it is not a checksum."""

    key: str
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class Fetched:
    """The result of one read: all bytes of one version of an object, and the ETag of that version."""

    data: bytes
    etag: str


class Store(ABC):
    """An object store. Keys are relative to its URI.

    Every method raises StoreUnreachable when the store does not answer or refuses access.
    """

    uri: str

    @abstractmethod
    def check(self) -> None:
        """Raise an error that says what to do when the store cannot be used."""

    @abstractmethod
    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """List all objects under ``prefix``, in any order."""

    @abstractmethod
    def fetch(self, key: str) -> Fetched:
        """Return an object's bytes and their ETag; raises ObjectMissing when there is none."""

    @abstractmethod
    def stat(self, key: str) -> ObjectInfo | None:
        """Return what a listing shows for ``key`` now; None when there is no such object."""

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Write an object atomically: readers see the old bytes or the new ones.

        Raises:
            RetrainError: for an odd key (``store.keys.is_odd``), which a store may hold but this project never writes.
        """

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Return whether there is an object at ``key``."""

    def delete(self, key: str) -> None:
        """Remove an object that this project wrote; a missing one is not an error.

        Raises:
            RetrainError: for any key that is not under ``retraining/``: an input object is never deleted.
        """
        if not key.startswith(OURS) or is_odd(key):
            raise RetrainError(f"refused to delete {key!r} in {self.uri}", f"only objects under {OURS} may be deleted")
        self._remove(key)

    @abstractmethod
    def _remove(self, key: str) -> None:
        """Remove the object at a key that ``delete`` has checked."""

    def unfinished(self) -> Iterator[tuple[Path, int]]:
        """Yield the temporary files of killed writers under ``retraining/`` (path, bytes), if the store has any."""
        yield from ()

    def get(self, key: str) -> bytes:
        """Return an object's bytes; raises ObjectMissing when there is none."""
        return self.fetch(key).data

    def create(self, key: str, data: bytes) -> bool:
        """Write an object unless there is one; return whether it was written.

        Of several writers at once one wins: on a folder, in memory, and in a bucket whose server knows conditional
        writes. On another server it is a check and a write: whoever needs to know reads again what is stored.
        """
        if self.exists(key):
            return False
        self.put(key, data)
        return True

    def local_path(self, key: str) -> Path | None:
        """Return the object's file on this machine, if it has one."""
        del key
        return None


def missing(uri: str, key: str) -> ObjectMissing:
    """Return the error for a missing object."""
    return ObjectMissing(f"no object {key!r} in {uri}", "it was deleted, or the store is not the one that wrote it")


def refuse_odd(uri: str, key: str) -> None:
    """Raise for a key that this project never writes."""
    if is_odd(key):
        raise RetrainError(
            f"refused to write {key!r} into {uri}",
            "a key must have no empty, '.' or '..' part and no control character",
        )
