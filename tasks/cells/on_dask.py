"""Chunks of the data stages' work, done on a worker of an engine: names of objects in, facts or squares out.

Pure: a worker reads the store and returns an answer; its temporary files are gone afterwards. So a chunk may be done
twice, or anywhere. No secret travels: each worker has its own identity.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from infra.processes.dask_cluster import Engine, open_engine
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

# About a second of work; an engine adds milliseconds to each chunk.
CHUNK = 1_000
# Fewer are done here sooner than they are sent.
WORTH_AN_ENGINE = 2_000
# The largest image that the default settings allow takes 0.4 s.
SECONDS = 60.0
DIED = "died"

# An object's SHA-256, and the keys that have this content.
Content = tuple[str, Sequence[str]]


@dataclass(frozen=True)
class Place:
    """Where the objects are stored."""

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


def keys_by_content(keys: Iterable[str], contents: Iterable[str]) -> dict[str, list[str]]:
    """Return the keys of each content, by SHA-256."""
    grouped: dict[str, list[str]] = {}
    for key, content in zip(keys, contents, strict=True):
        grouped.setdefault(content, []).append(key)
    return grouped


def map_chunks(
    settings: Settings, function: Callable[..., Any], contents: Mapping[str, Sequence[str]], *arguments: Any
) -> Iterator[Any]:
    """Yield ``function(place, chunk, *arguments)`` of each chunk of contents, done by the settings' engine."""
    place, items = Place.of(settings), list(contents.items())
    chunks = (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))
    with open_engine(settings.engine) as engine:
        refuse_others(engine)
        yield from engine.map(function, ((place, chunk, *arguments) for chunk in chunks))


def versions() -> dict[str, str]:
    """Return the versions that facts and pixels depend on: they must be the same on every worker."""
    names = ("numpy", "opencv-python-headless", "pillow")
    return {"facts": str(FACTS_VERSION), **{name: version(name) for name in names}}


def refuse_others(engine: Engine) -> None:
    """Refuse an engine whose workers would measure or draw differently from this process.

    Raises:
        RetrainError: names the differences.
    """
    here = versions()
    for there in engine.map(versions, [()] * 4):
        other = [f"{name} {there.get(name)} instead of {own}" for name, own in here.items() if there.get(name) != own]
        if other:
            raise RetrainError(
                f"a worker of the engine has {', '.join(other)}", "install the same lock on all machines"
            )


def measure_chunk(place: Place, contents: Sequence[Content], max_pixels: int) -> dict[str, list[Any]]:
    """Return the answer of ``tasks.cells.measuring_worker`` for each content, by SHA-256.

    In a separate process here too, so that a decoder's crash costs one image, and not the engine's worker.
    """
    store = place.open()
    with tempfile.TemporaryDirectory(prefix="measure-") as folder:
        paths: dict[str, Path] = {}
        answers: dict[str, list[Any]] = {}
        for digest, keys in contents:
            data = _read(store, digest, keys)
            if data is None:
                answers[digest] = [MISSING]
                continue
            paths[digest] = Path(folder) / digest
            paths[digest].write_bytes(data)
        with WorkerPool(WORKER, 1, seconds=SECONDS) as workers:
            measured = workers.answer(max_pixels, [[str(path), digest] for digest, path in paths.items()])
    for digest, answer in zip(paths, measured, strict=True):
        answers[digest] = [DIED, answer.how] if isinstance(answer, WorkerDied) else answer
    return answers


def draw_chunk(place: Place, contents: Sequence[Content], side: int, max_pixels: int) -> list[tuple[str, bytes]]:
    """Return SHA-256 and square (uint8 [side, side, 3], as bytes) of each content that the store still has."""
    store = place.open()
    return [
        (digest, to_square(decode_accepted(data, max_pixels), side).tobytes())
        for digest, keys in contents
        if (data := _read(store, digest, keys)) is not None
    ]


def _read(store: Store, digest: str, keys: Sequence[str]) -> bytes | None:
    for key in keys:
        try:
            data = store.get(key)
        except ObjectMissing:
            continue
        if sha256(data) == digest:
            return data
    return None
