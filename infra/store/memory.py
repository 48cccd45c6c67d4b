"""A store in memory, for tests."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Lock

from infra.store.base import Fetched, ObjectInfo, Store, missing
from validation.digest import sha256


class MemoryStore(Store):
    """A store in the memory of this process; accepts any key, however odd."""

    def __init__(self, uri: str = "memory://") -> None:
        self.uri = uri
        self.objects: dict[str, bytes] = {}
        self._creating = Lock()

    def check(self) -> None:
        """Memory is always there."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        for key, data in sorted(self.objects.items()):
            if key.startswith(prefix):
                yield ObjectInfo(key, len(data), sha256(data))

    def get(self, key: str) -> bytes:
        if key not in self.objects:
            raise missing(self.uri, key)
        return self.objects[key]

    def fetch(self, key: str) -> Fetched:
        data = self.get(key)
        return Fetched(data, sha256(data))

    def stat(self, key: str) -> ObjectInfo | None:
        data = self.objects.get(key)
        return None if data is None else ObjectInfo(key, len(data), sha256(data))

    def put(self, key: str, data: bytes) -> None:
        self.objects[key] = data

    def exists(self, key: str) -> bool:
        return key in self.objects

    def _remove(self, key: str) -> None:
        self.objects.pop(key, None)

    def create(self, key: str, data: bytes) -> bool:
        with self._creating:
            return super().create(key, data)
