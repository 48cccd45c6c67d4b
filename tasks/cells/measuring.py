"""Measure every image of a batch, decoded once, side by side; the facts are kept by content.

No image is measured twice, whatever its key. The facts are in one file under the home folder's cache, and are measured
again when that is lost.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from infra.local.facts_cache import FactsCache
from infra.processes.dask_cluster import LOCAL
from infra.processes.workers import WorkerDied, WorkerPool
from tasks.cells.measuring_worker import MISSING, REFUSED, WORKER
from tasks.cells.on_dask import DIED, SECONDS, WORTH_AN_ENGINE, keys_by_content, map_chunks, measure_chunk
from tasks.context import Context, Progress
from tasks.snapshots.objects import read_object
from validation.errors import ObjectMissing
from validation.images.facts import FACT_NAMES, FACTS_VERSION, ImageFacts
from validation.records import Finding

log = logging.getLogger(__name__)

# About 50 ms of work: little is lost with a worker, and the pipe always has room for a batch of answers.
BATCH = 64
# A process takes 0.2 s to start, in which another one measures this many.
WORTH_A_PROCESS = 250

_VALUES = attrgetter(*FACT_NAMES)


class Refused(NamedTuple):
    """An image that has no facts, and why."""

    reason: str
    detail: str


MeasureResult = ImageFacts | Refused
Contents = Mapping[str, Sequence[str]]  # SHA-256 -> the keys that have this content
_REMOVED = Refused("vanished", "its copy on this machine was removed while it was measured")


def measure_all(context: Context, rows: pd.DataFrame) -> tuple[pd.DataFrame, list[Finding]]:
    """Return the rows whose image could be measured, with its facts as further columns, and a finding for each other.

    ``rows`` has the columns key and sha256 (of the file's bytes) and any others; the returned table keeps them, in
    order. An image may be anything: a bad one costs itself, not the batch.
    """
    by_content = _measure_contents(context, keys_by_content(rows["key"], rows["sha256"]))
    results = [by_content[sha256] for sha256 in rows["sha256"]]
    findings = [
        Finding(reason=result.reason, key=key, detail=result.detail)
        for key, result in zip(rows["key"], results, strict=True)
        if isinstance(result, Refused)
    ]
    facts = [_VALUES(result) for result in results if isinstance(result, ImageFacts)]
    measured = rows[np.array([isinstance(result, ImageFacts) for result in results], bool)].reset_index(drop=True)
    return measured.join(pd.DataFrame(facts, columns=list(FACT_NAMES))), findings


def _measure_contents(context: Context, contents: Contents) -> dict[str, MeasureResult]:
    """Return the result of each content, by SHA-256: from the cache, or measured now."""
    max_pixels = context.settings.data.max_pixels
    with FactsCache(context.workspace.home / "cache" / f"facts-{FACTS_VERSION}.sqlite") as cache:
        known = {sha256: _from_text(text, max_pixels) for sha256, text in cache.get(contents).items()}
        results = {sha256: result for sha256, result in known.items() if result is not None}
        todo = {sha256: keys for sha256, keys in contents.items() if sha256 not in results}
        progress = Progress(log, "measured", len(todo))
        use_engine = context.settings.engine != LOCAL and len(todo) >= WORTH_AN_ENGINE
        for batch in (_measured_on_engine if use_engine else _measured)(context, todo, max_pixels):
            results |= batch
            cache.put({sha256: text for sha256, result in batch.items() if (text := _as_text(result, max_pixels))})
            progress.advance(len(batch))
    return results


def _measured(context: Context, todo: Contents, max_pixels: int) -> Iterator[dict[str, MeasureResult]]:
    """Measure contents in worker processes, and yield the results of each batch."""
    contents = list(todo)
    if not contents:
        return
    processes = max(1, min(len(os.sched_getaffinity(0)), len(contents) // WORTH_A_PROCESS))
    with WorkerPool(WORKER, processes, seconds=SECONDS) as workers, ThreadPoolExecutor(processes) as threads:
        futures = [
            threads.submit(_measure_batch, context, workers, contents[start : start + BATCH], todo, max_pixels)
            for start in range(0, len(contents), BATCH)
        ]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            threads.shutdown(cancel_futures=True)


def _measured_on_engine(context: Context, todo: Contents, max_pixels: int) -> Iterator[dict[str, MeasureResult]]:
    """Measure contents on the workers of the settings' engine, and yield the results of each chunk."""
    for answers in map_chunks(context.settings, measure_chunk, todo, max_pixels):
        results = {sha256: _result(answer) for sha256, answer in answers.items()}
        # What a worker could not read is tried here: this machine's cache may have it.
        missing = {sha256: todo[sha256] for sha256, result in results.items() if result == _REMOVED}
        yield {sha256: result for sha256, result in results.items() if sha256 not in missing}
        yield from _measured(context, missing, max_pixels)


def _measure_batch(
    context: Context, workers: WorkerPool, batch: Sequence[str], keys: Contents, max_pixels: int
) -> dict[str, MeasureResult]:
    def ask(contents: Sequence[str]) -> dict[str, MeasureResult]:
        items = [[str(context.workspace.object_path(sha256)), sha256] for sha256 in contents]
        return dict(zip(contents, map(_result, workers.answer(max_pixels, items)), strict=True))

    results = ask(batch)
    fetched = []
    for sha256 in [sha256 for sha256, result in results.items() if result == _REMOVED]:
        if (problem := _fetch(context, sha256, keys[sha256])) is None:
            fetched.append(sha256)
        else:
            results[sha256] = problem
    return results | ask(fetched)


def _fetch(context: Context, sha256: str, keys: Iterable[str]) -> Refused | None:
    """Put an object into the cache again, from any key that still has it; return the problem where none has."""
    problem = None
    for key in keys:
        try:
            read_object(context, key, sha256)
        except ObjectMissing as error:
            problem = Refused("vanished", error.message)
        else:
            return None
    return problem


def _result(answer: Any) -> MeasureResult:
    kind, *values = [DIED, answer.how] if isinstance(answer, WorkerDied) else answer
    if kind == DIED:
        return Refused("decoder crashed", f"the process that decoded it {values[0]}, twice")
    if kind == MISSING:
        return _REMOVED
    return Refused(*values) if kind == REFUSED else ImageFacts(*values)


def _as_text(result: MeasureResult, max_pixels: int) -> str | None:
    """Return what the cache keeps of a result; None for one that may differ next time."""
    if isinstance(result, ImageFacts):
        return json.dumps(_VALUES(result))
    if result.reason in ("vanished", "decoder crashed"):
        return None
    # Only this refusal depends on a setting.
    return json.dumps([*result, max_pixels if result.reason == "too large" else 0])


def _from_text(text: str, max_pixels: int) -> MeasureResult | None:
    values = json.loads(text)
    if len(values) > 3:
        return ImageFacts(*values)
    reason, detail, limit = values
    return Refused(reason, detail) if limit in (0, max_pixels) else None
