"""This process's environment variables, which all that it starts inherits, put back after others changed them."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager


@contextmanager
def environment_kept(names: Collection[str] | None = None) -> Iterator[None]:
    """Put back the environment variables that are changed within: those of ``names``, or all."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(names if names is not None else os.environ.keys() | before.keys()):
            if name in before:
                os.environ[name] = before[name]
            else:
                os.environ.pop(name, None)
