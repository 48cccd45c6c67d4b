"""Measuring: every image of a batch decoded once, side by side, and what was measured kept by content.

So no image is measured twice in its life, whatever its key; what is kept lies in one file under the home folder's
cache, and is measured again when that is lost.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from operator import attrgetter
from typing import Any, NamedTuple

import pandas as pd

from infra.local.facts_cache import FactsCache
from infra.processes.dask_cluster import LOCAL, open_engine
from infra.processes.workers import WorkerDied, WorkerPool
from tasks.cells.measuring_worker import MISSING, REFUSED, WORKER
from tasks.cells.on_dask import DIED, SECONDS, WORTH_AN_ENGINE, Place, in_chunks, measure_chunk, refuse_others
from tasks.context import Context, Progress
from tasks.snapshots.objects import read_object
from validation.errors import ObjectMissing
from validation.images.facts import FACT_NAMES, FACTS_VERSION, ImageFacts
from validation.records import Finding

log = logging.getLogger(__name__)

# About 50 ms of work: little is lost with a worker, and the pipe always holds a whole batch of answers.
BATCH = 64
# A process takes 0.2 s to start, in which another one measures this many.
WORTH_A_PROCESS = 250

_VALUES = attrgetter(*FACT_NAMES)


class Refused(NamedTuple):
    """An image that has no facts, and why."""

    reason: str
    detail: str


MeasureResult = ImageFacts | Refused


def measure_all(context: Context, rows: pd.DataFrame) -> tuple[pd.DataFrame, list[Finding]]:
    """Return the rows whose image could be measured, with its facts as further columns, and a finding for each other.

    ``rows`` has the columns key and sha256 (of the file's bytes) and any others, in any order; the table that comes
    back keeps them and their order. An image may be anything: it costs itself, not the batch.
    """
    outcomes = _outcomes(context, rows)
    measured: list[tuple[Any, ...]] = []
    findings: list[Finding] = []
    for row in rows.itertuples(index=False, name=None):
        at = dict(zip(rows.columns, row, strict=True))
        outcome = outcomes[at["sha256"]]
        if isinstance(outcome, Refused):
            findings.append(Finding(reason=outcome.reason, key=at["key"], detail=outcome.detail))
        else:
            measured.append((*row, *_VALUES(outcome)))
    return pd.DataFrame(measured, columns=[*rows.columns, *FACT_NAMES]), findings


def _outcomes(context: Context, rows: pd.DataFrame) -> dict[str, MeasureResult]:
    """Return what is known of each content, by SHA-256: from what is kept, or measured now."""
    keys: dict[str, list[str]] = {}
    for key, sha256 in zip(rows["key"], rows["sha256"], strict=True):
        keys.setdefault(sha256, []).append(key)
    max_pixels = context.settings.data.max_pixels
    folder = context.workspace.home / "cache"
    with FactsCache(folder / f"facts-{FACTS_VERSION}.sqlite") as kept:
        known = {sha256: _from_text(text, max_pixels) for sha256, text in kept.get(keys).items()}
        outcomes = {sha256: outcome for sha256, outcome in known.items() if outcome is not None}
        todo = {sha256: where for sha256, where in keys.items() if sha256 not in outcomes}
        progress = Progress(log, "measured", len(todo))
        spread = context.settings.engine != LOCAL and len(todo) >= WORTH_AN_ENGINE
        for some in (_measured_elsewhere if spread else _measured)(context, todo, max_pixels):
            outcomes |= some
            kept.put({sha256: text for sha256, outcome in some.items() if (text := _as_text(outcome, max_pixels))})
            progress.advance(len(some))
    return outcomes


def _measured(context: Context, todo: dict[str, list[str]], max_pixels: int) -> Iterator[dict[str, MeasureResult]]:
    """Measure contents (SHA-256 -> keys that hold it) in worker processes, and yield them by the batch."""
    contents = list(todo)
    batches = [contents[start : start + BATCH] for start in range(0, len(contents), BATCH)]
    if not batches:
        return
    processes = max(1, min(len(os.sched_getaffinity(0)), len(contents) // WORTH_A_PROCESS))
    with WorkerPool(WORKER, processes, seconds=SECONDS) as crew, ThreadPoolExecutor(processes) as threads:
        futures = [threads.submit(_measure_batch, context, crew, batch, todo, max_pixels) for batch in batches]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            threads.shutdown(cancel_futures=True)


def _measured_elsewhere(
    context: Context, todo: dict[str, list[str]], max_pixels: int
) -> Iterator[dict[str, MeasureResult]]:
    """Measure contents on the workers of the engine that the settings name, and yield them by the chunk."""
    place = Place.of(context.settings)
    contents = [(sha256, tuple(keys)) for sha256, keys in todo.items()]
    with open_engine(context.settings.engine) as engine:
        refuse_others(engine)
        for answers in engine.map(measure_chunk, ((place, chunk, max_pixels) for chunk in in_chunks(contents))):
            # What a worker could not read is looked at here: the cache may hold it still.
            missing = {sha256: todo[sha256] for sha256, answer in answers.items() if _is_missing(answer)}
            yield {sha256: _outcome(answer) for sha256, answer in answers.items() if sha256 not in missing}
            yield from _measured(context, missing, max_pixels)


def _measure_batch(
    context: Context, crew: WorkerPool, batch: Sequence[str], keys: dict[str, list[str]], max_pixels: int
) -> dict[str, MeasureResult]:
    answers = dict(zip(batch, _ask(context, crew, batch, max_pixels), strict=True))
    missing = [sha256 for sha256, answer in answers.items() if _is_missing(answer)]
    outcomes = {sha256: _outcome(answer) for sha256, answer in answers.items() if not _is_missing(answer)}
    if missing:
        gone = {sha256: problem for sha256 in missing if (problem := _fetch(context, sha256, keys[sha256]))}
        here = [sha256 for sha256 in missing if sha256 not in gone]
        again = dict(zip(here, _ask(context, crew, here, max_pixels), strict=True))
        outcomes |= {sha256: _outcome(answer) for sha256, answer in again.items()} | gone
    return outcomes


def _ask(context: Context, crew: WorkerPool, contents: Sequence[str], max_pixels: int) -> list[Any]:
    items = [[str(context.workspace.object_path(sha256)), sha256] for sha256 in contents]
    return crew.answer(max_pixels, items)


def _fetch(context: Context, sha256: str, keys: Iterable[str]) -> Refused | None:
    """Put an object into the cache again, from any key that still holds it; say so where none does."""
    problem = None
    for key in keys:
        try:
            read_object(context, key, sha256)
        except ObjectMissing as error:
            problem = Refused("vanished", error.message)
        else:
            return None
    return problem


def _is_missing(answer: Any) -> bool:
    return isinstance(answer, list) and answer[0] == MISSING


def _outcome(answer: Any) -> MeasureResult:
    if isinstance(answer, WorkerDied):
        return Refused("decoder crashed", f"the process that decoded it {answer.how}, twice")
    kind, *values = answer
    if kind == DIED:
        return _outcome(WorkerDied(*values))
    if kind == MISSING:
        return Refused("vanished", "its copy on this machine was removed while it was measured")
    return Refused(*values) if kind == REFUSED else ImageFacts(*values)


def _as_text(outcome: MeasureResult, max_pixels: int) -> str | None:
    """Return what is kept of an outcome; None for one that may be another next time."""
    if isinstance(outcome, ImageFacts):
        return json.dumps(_VALUES(outcome))
    if outcome.reason in ("vanished", "decoder crashed"):
        return None
    # Only this refusal depends on a setting.
    return json.dumps([*outcome, max_pixels if outcome.reason == "too large" else 0])


def _from_text(text: str, max_pixels: int) -> MeasureResult | None:
    values = json.loads(text)
    if len(values) > 3:
        return ImageFacts(*values)
    reason, detail, limit = values
    return Refused(reason, detail) if limit in (0, max_pixels) else None
