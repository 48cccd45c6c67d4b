"""Content digests: the names of records, tables and images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Any

# 24 hex digits are 96 bits: no accidental collision among 10^12 records (birthday bound about 10^-5),
# and still short enough to be read out and typed.
DIGEST_LENGTH = 24


def sha256(data: bytes) -> str:
    """Return the full SHA-256 of ``data`` as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def canonical_json(value: Any) -> bytes:
    """Return the canonical JSON of ``value``: sorted keys, no spaces.

    Raises:
        ValueError: for NaN or infinity, which JSON cannot represent.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def digest(*parts: Any) -> str:
    """Return the 24-digit digest of ``parts``: JSON values, or bytes."""
    whole = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else canonical_json(part)
        # The length goes first, so that ("ab", "c") and ("a", "bc") differ.
        whole.update(str(len(data)).encode() + b":" + data)
    return whole.hexdigest()[:DIGEST_LENGTH]


def digest_of_list(chunks: Callable[[], Iterable[list[Any]]]) -> str:
    """Return ``digest`` of one list in chunks, which are read twice: its JSON need not fit into memory."""
    length = 2 + max(0, sum(len(canonical_json(chunk)) - 1 for chunk in chunks() if chunk) - 1)
    whole = hashlib.sha256(str(length).encode() + b":[")
    comma = b""
    for chunk in chunks():
        if chunk:
            whole.update(comma + canonical_json(chunk)[1:-1])
            comma = b","
    whole.update(b"]")
    return whole.hexdigest()[:DIGEST_LENGTH]
