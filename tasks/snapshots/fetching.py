"""Fetching many objects at once: each ends with bytes in the cache, or with the reason why it could not be had.

An object that is overwritten between the listing and its fetching ends with a size, an ETag and a SHA-256 that belong
together. A store that is gone ends all of it soon; an object that cannot be read costs itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from queue import SimpleQueue
from threading import Event, Lock, Thread

from infra.store.base import Fetched, ObjectInfo
from tasks.context import Context
from tasks.snapshots.fetch_log import Journal
from validation.errors import ObjectMissing, StoreUnreachable

log = logging.getLogger(__name__)

# A unit of work: small, so that one slow object holds up few others; more than one, since handing over costs too.
BATCH = 16
WRITE_BYTES = 1_000_000
# An object that was overwritten while it was fetched is fetched again, so often.
CHANGES = 4
# After so many failures in a row the store is asked whether it is there; after so many it counts as gone.
ASK_AFTER, GIVE_UP_AFTER = 8, 100


@dataclass(frozen=True, slots=True)
class FetchResult:
    """What became of one wanted object. ``problem`` is empty, or why there are no bytes; ``vanished``: deleted since;
    ``changed``: ``info`` is not what the listing said.
    """

    index: int
    info: ObjectInfo
    sha256: str
    problem: str = ""
    changed: bool = False


class Fetcher:
    """Fetches wanted objects into the cache and notes each in the journal."""

    def __init__(self, context: Context, journal: Journal) -> None:
        self._context, self._journal = context, journal
        # Threads that make files at the same time only wait for each other (measured on ext4 and in memory).
        self._writing = Lock()
        self._stopping = Event()
        self._lock = Lock()
        self._failed_in_a_row = 0

    def fetch_all(self, wanted: Iterable[tuple[int, ObjectInfo]]) -> Iterator[list[FetchResult]]:
        """Yield outcomes as they come, in any order.

        Raises:
            StoreUnreachable: when the store is gone.
            RetrainError: when the disk is full.
        """
        source, taking = iter(wanted), Lock()
        done: SimpleQueue[list[FetchResult] | BaseException | None] = SimpleQueue()
        self._stopping.clear()

        def work() -> None:
            try:
                while not self._stopping.is_set():
                    with taking:
                        batch = list(islice(source, BATCH))
                    if not batch:
                        break
                    done.put(self._batch(batch))
            except BaseException as error:  # carried to the thread that waits, whatever it is
                done.put(error)
            done.put(None)

        workers = [Thread(target=work, name="fetch", daemon=True) for _ in range(self._context.settings.wire.threads)]
        for worker in workers:
            worker.start()
        running = len(workers)
        try:
            while running:
                outcome = done.get()
                if isinstance(outcome, BaseException):
                    raise outcome
                if outcome is None:
                    running -= 1
                else:
                    yield outcome
        finally:
            self._stopping.set()
            for worker in workers:
                worker.join()

    def _batch(self, batch: list[tuple[int, ObjectInfo]]) -> list[FetchResult]:
        """Fetch a few objects and then write them, together as far as that is not much memory."""
        outcomes: list[FetchResult] = []
        waiting: list[tuple[int, ObjectInfo, bytes, bool]] = []
        for index, listed in batch:
            if self._stopping.is_set():
                break  # nobody waits for the rest: the store is gone, or the disk is full
            read = self._read(index, listed)
            if isinstance(read, FetchResult):
                outcomes.append(read)
                continue
            info, fetched = read
            waiting.append((index, info, fetched.data, info != listed))
            if sum(len(data) for _, _, data, _ in waiting) > WRITE_BYTES:
                outcomes += self._write(waiting)
                waiting = []
        return outcomes + self._write(waiting)

    def _write(self, waiting: list[tuple[int, ObjectInfo, bytes, bool]]) -> list[FetchResult]:
        if not waiting:
            return []
        with self._writing:
            digests = [self._context.workspace.write_object(data) for _, _, data, _ in waiting]
        self._journal.note((info, digest) for (_, info, _, _), digest in zip(waiting, digests, strict=True))
        return [
            FetchResult(index, info, digest, changed=changed)
            for (index, info, _, changed), digest in zip(waiting, digests, strict=True)
        ]

    def _read(self, index: int, info: ObjectInfo) -> FetchResult | tuple[ObjectInfo, Fetched]:
        try:
            info, fetched = self._settled(info)
        except ObjectMissing:
            return FetchResult(index, info, "", "vanished")  # deleted while the listing ran
        except StoreUnreachable as error:
            log.warning("cannot fetch %r: %s", info.key, error.message)
            self._failed(error)
            return FetchResult(index, info, "", "unreadable")
        self._failed_in_a_row = 0
        if info.size > self._context.settings.data.max_bytes:
            return FetchResult(index, info, "", "too many bytes")
        return info, fetched

    def _settled(self, info: ObjectInfo) -> tuple[ObjectInfo, Fetched]:
        """Return bytes together with what a listing says of just these bytes."""
        store = self._context.store
        for _ in range(CHANGES):
            fetched = store.fetch(info.key)
            size = len(fetched.data)
            if (size, fetched.etag) == (info.size, info.etag):
                return info, fetched
            now = store.stat(info.key)
            if now is None:
                raise ObjectMissing(f"{info.key!r} was deleted while it was fetched")
            if (size, fetched.etag) == (now.size, now.etag):
                return now, fetched
            if now == info and size == info.size:
                # Nothing has changed: this server words its ETags differently in a listing and in an answer.
                return info, fetched
            info = now
        raise StoreUnreachable(
            f"{info.key!r} was overwritten {CHANGES} times while it was fetched", "let its writer finish first"
        )

    def _failed(self, error: StoreUnreachable) -> None:
        """Count a failure; raise when it is the store that fails and not the object."""
        with self._lock:
            self._failed_in_a_row += 1
            count = self._failed_in_a_row
        if count % ASK_AFTER == 0:
            self._context.store.check()
        if count >= GIVE_UP_AFTER:
            raise StoreUnreachable(
                f"{self._context.store.uri} lists its objects and gave none of the last {count}: {error.message}",
                error.hint,
            )
