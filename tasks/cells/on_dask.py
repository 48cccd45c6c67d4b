"""Chunks of the data stages' work, done on a worker of an engine: names of objects in, facts or squares out.

Pure: a worker reads the store and gives an answer, and writes nothing but files of its own that are gone afterwards. So
a chunk may be done twice, or anywhere. Nothing secret travels: a worker has an identity of its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from infra.processes.dask_cluster import Engine
from infra.processes.workers import WorkerDied, WorkerPool
from infra.settings.groups import WireSettings
from infra.settings.settings import Settings
from infra.store.base import Store
from infra.store.opening import open_store
from tasks.cells.accepted import decode_accepted
from tasks.cells.measuring_worker import MISSING, WORKER
from validation.digest import sha256
from validation.errors import ObjectMissing, RetrainError
from validation.images.decode import to_square
from validation.images.facts import FACTS_VERSION

# A second of work or so: what an engine adds to a chunk is some milliseconds.
CHUNK = 1_000
# Fewer are done here sooner than they are sent.
WORTH_AN_ENGINE = 2_000
# The largest picture that is allowed by default takes 0.4 s.
SECONDS = 60.0
DIED = "died"

# An object's SHA-256, and the keys that hold it.
Content = tuple[str, tuple[str, ...]]


@dataclass(frozen=True)
class Place:
    """Where the objects lie."""

    store: str
    endpoint: str | None
    region: str | None
    wire: WireSettings

    @classmethod
    def of(cls, settings: Settings) -> Place:
        """Return the place that the settings name."""
        return cls(settings.store, settings.store_endpoint, settings.store_region, settings.wire)

    def open(self) -> Store:
        """Open the store there."""
        return open_store(self.store, endpoint=self.endpoint, region=self.region, wire=self.wire)


def versions() -> dict[str, str]:
    """Return what has a say in facts and pixels: it must be the same on every worker."""
    names = ("numpy", "opencv-python-headless", "pillow")
    return {"facts": str(FACTS_VERSION), **{name: version(name) for name in names}}


def refuse_others(engine: Engine) -> None:
    """Refuse an engine whose workers would measure or draw otherwise than this process.

    Raises:
        RetrainError: names what is different.
    """
    ours = versions()
    for theirs in engine.map(versions, [()] * 4):
        other = [
            f"{name} {theirs.get(name)} instead of {found}" for name, found in ours.items() if theirs.get(name) != found
        ]
        if other:
            raise RetrainError(
                f"a worker of the engine has {', '.join(other)}", "install the same lock on all machines"
            )


def measure_chunk(place: Place, contents: Sequence[Content], max_pixels: int) -> dict[str, list[Any]]:
    """Return the answer of ``tasks.cells.measuring_worker`` for each content, by SHA-256.

    In a process of its own here too, so that a decoder's crash costs one image, and not the engine's worker.
    """
    store = place.open()
    with tempfile.TemporaryDirectory(prefix="measure-") as folder:
        here: list[tuple[str, Path]] = []
        answers: dict[str, list[Any]] = {}
        for digest, keys in contents:
            data = _read(store, digest, keys)
            if data is None:
                answers[digest] = [MISSING]
                continue
            path = Path(folder) / digest
            path.write_bytes(data)
            here.append((digest, path))
        with WorkerPool(WORKER, 1, seconds=SECONDS) as crew:
            found = crew.answer(max_pixels, [[str(path), digest] for digest, path in here])
    for (digest, _), answer in zip(here, found, strict=True):
        answers[digest] = [DIED, answer.how] if isinstance(answer, WorkerDied) else answer
    return answers


def draw_chunk(place: Place, contents: Sequence[Content], side: int, max_pixels: int) -> list[tuple[str, bytes]]:
    """Return SHA-256 and square (uint8 [side, side, 3], as bytes) of each content that the store still holds."""
    store = place.open()
    return [
        (digest, to_square(decode_accepted(data, max_pixels), side).tobytes())
        for digest, keys in contents
        if (data := _read(store, digest, keys)) is not None
    ]


def in_chunks(contents: Sequence[Content]) -> Iterator[Sequence[Content]]:
    """Yield the contents by the chunk."""
    for start in range(0, len(contents), CHUNK):
        yield contents[start : start + CHUNK]


def _read(store: Store, digest: str, keys: Sequence[str]) -> bytes | None:
    for key in keys:
        try:
            data = store.get(key)
        except ObjectMissing:
            continue
        if sha256(data) == digest:
            return data
    return None
