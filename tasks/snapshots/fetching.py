"""Fetch many objects at once: each ends with bytes in the cache, or with the reason why there are none.

An object that is overwritten between the listing and its fetching ends with a size, an ETag and a SHA-256 that belong
together. A store that is gone ends the whole fetch soon; an unreadable object costs only itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from queue import SimpleQueue
from threading import Event, Lock

from infra.store.base import ObjectInfo
from tasks.context import Context
from tasks.snapshots.fetch_log import Journal
from validation.errors import ObjectMissing, StoreUnreachable

log = logging.getLogger(__name__)

# A unit of work: small, so that one slow object delays few others; more than one, since each handover costs.
BATCH = 16
WRITE_BYTES = 1_000_000
# How often an object is fetched that is overwritten while it is fetched.
CHANGES = 4
# After so many failures in a row the store is checked; after so many it counts as gone.
ASK_AFTER, GIVE_UP_AFTER = 8, 100

Wanted = tuple[int, ObjectInfo]


@dataclass(frozen=True, slots=True)
class FetchResult:
    """The outcome for one wanted object. ``problem`` says why there are no bytes, ``vanished`` if it was deleted since;
    ``changed``: ``info`` is not what the listing said.
    """

    index: int
    info: ObjectInfo
    sha256: str = ""
    problem: str = ""
    changed: bool = False


class Fetcher:
    """Fetches wanted objects into the cache and notes each in the journal."""

    def __init__(self, context: Context, journal: Journal) -> None:
        self._context, self._journal = context, journal
        # Threads that create files at the same time only wait for each other (measured on ext4 and in memory).
        self._writing = Lock()
        self._counting = Lock()
        self._stopping = Event()
        self._failed_in_a_row = 0

    def fetch_all(self, wanted: Iterable[Wanted]) -> Iterator[list[FetchResult]]:
        """Yield results as they come, in any order.

        Raises:
            StoreUnreachable: when the store is gone.
            RetrainError: when the disk is full.
        """
        source, threads = iter(wanted), self._context.settings.wire.threads
        batches = iter(lambda: list(islice(source, BATCH)), [])
        done: SimpleQueue[Future[list[FetchResult]]] = SimpleQueue()
        running = 0
        with ThreadPoolExecutor(threads, "fetch") as pool:
            try:
                while True:
                    for batch in islice(batches, 2 * threads - running):
                        pool.submit(self._batch, batch).add_done_callback(done.put)
                        running += 1
                    if not running:
                        return
                    yield done.get().result()
                    running -= 1
            finally:
                self._stopping.set()
                pool.shutdown(cancel_futures=True)

    def _batch(self, batch: list[Wanted]) -> list[FetchResult]:
        """Fetch a few objects, then write them together, as far as that takes little memory."""
        results: list[FetchResult] = []
        unwritten: list[tuple[FetchResult, bytes]] = []
        for index, listed in batch:
            if self._stopping.is_set():
                break  # the store is gone, or the disk is full
            result, data = self._read(index, listed)
            if result.problem:
                results.append(result)
                continue
            unwritten.append((result, data))
            if sum(len(data) for _, data in unwritten) > WRITE_BYTES:
                results += self._write(unwritten)
                unwritten = []
        return results + self._write(unwritten)

    def _write(self, unwritten: list[tuple[FetchResult, bytes]]) -> list[FetchResult]:
        if not unwritten:
            return []
        with self._writing:
            digests = [self._context.workspace.write_object(data) for _, data in unwritten]
        results = [replace(result, sha256=digest) for (result, _), digest in zip(unwritten, digests, strict=True)]
        self._journal.note((result.info, result.sha256) for result in results)
        return results

    def _read(self, index: int, listed: ObjectInfo) -> tuple[FetchResult, bytes]:
        try:
            info, data = self._consistent(listed)
        except ObjectMissing:
            return FetchResult(index, listed, problem="vanished"), b""
        except StoreUnreachable as error:
            log.warning("cannot fetch %r: %s", listed.key, error.message)
            self._count_failure(error)
            return FetchResult(index, listed, problem="unreadable"), b""
        self._failed_in_a_row = 0
        too_large = info.size > self._context.settings.data.max_bytes
        return FetchResult(index, info, problem="too many bytes" if too_large else "", changed=info != listed), data

    def _consistent(self, info: ObjectInfo) -> tuple[ObjectInfo, bytes]:
        """Return bytes together with what a listing says of these very bytes."""
        store = self._context.store
        for _ in range(CHANGES):
            fetched = store.fetch(info.key)
            size = len(fetched.data)
            if (size, fetched.etag) == (info.size, info.etag):
                return info, fetched.data
            now = store.stat(info.key)
            if now is None:
                raise ObjectMissing(f"{info.key!r} was deleted while it was fetched", "the night goes on without it")
            # Unchanged since the listing: this server words its ETags differently in a listing and in an answer.
            if (size, fetched.etag) == (now.size, now.etag) or (now == info and size == info.size):
                return now, fetched.data
            info = now
        raise StoreUnreachable(
            f"{info.key!r} was overwritten {CHANGES} times while it was fetched", "let its writer finish first"
        )

    def _count_failure(self, error: StoreUnreachable) -> None:
        """Raise when it is the store that fails and not the object."""
        with self._counting:
            self._failed_in_a_row += 1
            count = self._failed_in_a_row
        if count % ASK_AFTER == 0:
            self._context.store.check()
        if count >= GIVE_UP_AFTER:
            raise StoreUnreachable(
                f"{self._context.store.uri} lists its objects and gave none of the last {count}: {error.message}",
                error.hint,
            )
