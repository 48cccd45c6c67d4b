"""Read one object of a snapshot: from this machine's cache, else from the store."""

from __future__ import annotations

from tasks.context import Context
from validation.errors import ObjectMissing


def read_object(context: Context, key: str, sha256: str) -> bytes:
    """Return the bytes that a snapshot names: from the cache, or fetched again where they are missing or rotten.

    Raises:
        ObjectMissing: when the store no longer has these bytes under this key.
    """
    data = context.workspace.read_object(sha256)
    if data is None:
        data = context.store.get(key)
        if context.workspace.write_object(data) != sha256:
            raise ObjectMissing(f"{key!r} was overwritten since the snapshot", "run the night again")
    return data
