"""Opens the object store of a URI: a folder, memory, S3 and compatible servers, Google Cloud or Azure.

Nothing under ``labeled/`` is ever changed, moved or deleted by this project.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from infra.settings.groups import WireSettings
from infra.store.base import Fetched, ObjectInfo, Store
from infra.store.folder import FolderStore
from infra.store.memory import MemoryStore
from validation.errors import SettingsError

__all__ = ["Fetched", "FolderStore", "MemoryStore", "ObjectInfo", "Store", "open_store"]


def open_store(
    uri: str, *, endpoint: str | None = None, region: str | None = None, wire: WireSettings | None = None
) -> Store:
    """Return the store at ``uri``: file:///folder, memory://, s3://bucket/prefix, gs://... or az://...

    Raises:
        SettingsError: for any other URI.
        StoreUnreachable: without any credentials. ``check`` finds out whether the store answers.
    """
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise SettingsError(f"store {uri!r} is not an address: {error}", "correct it") from None
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise SettingsError(f"store {uri!r} is not an absolute folder", "expected file:///absolute/folder")
        return FolderStore(Path(unquote(parts.path)))
    if parts.scheme == "memory":
        return _memory_stores.setdefault(uri, MemoryStore(uri))
    if parts.scheme == "s3":
        from infra.store.s3 import S3Store

        return S3Store(uri, endpoint=endpoint, region=region, wire=wire)
    if parts.scheme in ("gs", "az"):
        from infra.store.obstore import ObstoreStore

        return ObstoreStore(uri, wire=wire)
    raise SettingsError(
        f"store {uri!r} has an unknown scheme {parts.scheme!r}",
        "expected file:///folder, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or memory://name",
    )


# Opening the same memory:// URI twice gives the same objects.
_memory_stores: dict[str, MemoryStore] = {}
