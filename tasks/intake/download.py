"""Downloads one large file over HTTP into a folder: streamed, resumed where it was cut off, kept for the next import.

A finished file is ``<digest of the URL>.zip``, an unfinished one ``.zip.part``. The server's description of it (ETag,
Last-Modified, length) is stored beside it, so that another process can resume it or ask whether it has changed.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Literal

import httpx

from infra.local.files import acquire_lock, write_atomic
from validation.digest import digest
from validation.errors import RetrainError, Unreachable, UsageError

log = logging.getLogger(__name__)

_FAILURES = 5  # in a row without a new byte
_REQUESTS = 100  # in all: a server that drops every connection after a few bytes must not block the import for ever
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds
# Of a file whose length the server does not say: thirty times the public archive.
MOST_BYTES = 10_000_000_000
_TIMEOUT = httpx.Timeout(30, connect=10)
_TRANSIENT = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)


@dataclass(frozen=True)
class ImportProgress:
    """Progress of an import; ``total`` is None while the length of the file is unknown."""

    stage: Literal["download", "import"]
    done: int
    total: int | None
    unit: Literal["bytes", "cells"]


Report = Callable[[ImportProgress], None]


def throttled(report: Report) -> Report:
    """Return ``report``, called at most every 0.2 s, and at the end."""
    due = 0.0

    def throttle(now: ImportProgress) -> None:
        nonlocal due
        if now.done == now.total or time.monotonic() >= due:
            report(now)
            due = time.monotonic() + 0.2

    return throttle


@dataclass(frozen=True)
class _Version:
    """What identifies a version of the remote file."""

    etag: str | None = None
    modified: str | None = None
    length: int | None = None

    @property
    def condition(self) -> str | None:
        """The value of If-Range: a strong ETag, else a date; without either nothing proves that the rest fits."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified

    def agrees_with(self, other: _Version) -> bool:
        """Whether every field that both have is equal."""
        return all(None in pair or pair[0] == pair[1] for pair in zip(astuple(self), astuple(other), strict=True))

    def completed(self, other: _Version) -> _Version:
        """Fill missing fields from ``other``: not every server repeats them in a partial answer."""
        return _Version(*(mine or known for mine, known in zip(astuple(self), astuple(other), strict=True)))


class _TryAgainError(Exception):
    """A transient failure; ``pause`` is how long the server asked to wait, in seconds."""

    def __init__(self, reason: str, pause: float = 0) -> None:
        super().__init__(reason)
        self.pause = pause


def shown_url(url: str) -> str:
    """Return ``url`` without its possible secrets: user, password, and the query of a presigned link."""
    scheme, _, rest = url.partition("://")
    host, slash, path = re.split("[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def download(
    url: str,
    folder: Path,
    *,
    progress: Report = lambda _: None,
    pause: Callable[[float], None] = time.sleep,
) -> Path:
    """Return the path of the file at ``url``, downloaded to ``folder`` now or earlier.

    An earlier download is used when the server says that it is unchanged, or cannot be asked.

    Raises:
        UsageError: for a URL that is not http(s).
        Unreachable: when the server refuses, or does not answer after several tries.
        RetrainError: when the disk is full, or another process is downloading the same file.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UsageError(f"cannot download {shown_url(url)}", "expected http://HOST/... or https://HOST/...")
    fetch = _Fetch(url, folder, throttled(progress), pause)
    with fetch.locked(), httpx.Client(timeout=_TIMEOUT, follow_redirects=True) as client:
        if not fetch.is_kept(client):
            fetch.run(client)
    return fetch.target


class _Fetch:
    """The download of one URL to one file."""

    def __init__(self, url: str, folder: Path, progress: Report, pause: Callable[[float], None]) -> None:
        self.url, self.folder, self.progress, self.pause = url, folder, progress, pause
        self.shown = shown_url(url)
        self.target = folder / f"{digest(url)}.zip"
        self.part = self.target.with_suffix(".zip.part")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Exclude other processes: two writers would silently corrupt the part."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._disk_error(error) from error
        lock = acquire_lock(self.target.with_suffix(".lock"))
        if lock is None:
            raise RetrainError(f"another process is downloading {self.shown}", "wait for it to end")
        with lock:
            yield

    def is_kept(self, client: httpx.Client) -> bool:
        """Whether an earlier download can be used."""
        if not self.target.exists():
            return False
        kept = self._version_of(self.target)
        if kept.length not in (None, self.target.stat().st_size):
            return False
        conditions = {"If-None-Match": kept.etag, "If-Modified-Since": kept.modified}
        try:
            answer = client.head(self.url, headers={name: value for name, value in conditions.items() if value})
        except httpx.HTTPError as error:
            log.warning("cannot ask whether %s has changed (%s): using the kept file", self.shown, _reason(error))
            return True
        if answer.status_code == HTTPStatus.OK and not kept.agrees_with(_version(answer)):
            log.info("%s has changed since it was downloaded", self.shown)
            return False
        return True

    def run(self, client: httpx.Client) -> None:
        """Request until the file is complete; raise Unreachable at the limits of failures and requests."""
        failures, furthest = 0, self._size()
        for _ in range(_REQUESTS):
            try:
                self._request(client)
            except (httpx.HTTPError, _TryAgainError) as error:
                failures = 1 if self._size() > furthest else failures + 1
                furthest = max(furthest, self._size())
                if failures >= _FAILURES:
                    raise self._unreachable(f"cannot download {self.shown}: {_reason(error)}") from error
                self._wait(failures, error)
            except OSError as error:
                raise self._disk_error(error) from error
            else:
                return
        raise self._unreachable(f"gave up {self.shown} after {_REQUESTS} requests")

    def _wait(self, failures: int, error: Exception) -> None:
        backoff: float = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (failures - 1))
        requested = error.pause if isinstance(error, _TryAgainError) else 0
        # Jitter, so that the clients of a server that was down do not all return at once.
        seconds = max(requested, backoff * random.uniform(0.5, 1))  # noqa: S311
        log.info("%s: %s; trying again in %.1f s", self.shown, _reason(error), seconds)
        self.pause(seconds)

    def _request(self, client: httpx.Client) -> None:
        """Fetch the rest of the part, or the whole file, and move it into place."""
        known, offset = self._version_of(self.part), self._size()
        if offset and offset == known.length:
            return self._finish(known)
        # Lengths and offsets count the file's bytes only without compression on the way.
        headers = {"Accept-Encoding": "identity"}
        if offset and known.condition:
            headers |= {"Range": f"bytes={offset}-", "If-Range": known.condition}
        with client.stream("GET", self.url, headers=headers) as answer:
            offset = self._accept(answer, known, offset)
            version = _version(answer).completed(known) if offset else _version(answer)
            self._save(self.part, version)
            self._receive(answer, offset, version.length)
        if version.length is not None and self._size() != version.length:
            raise _TryAgainError(f"received {self._size()} of {version.length} bytes")
        return self._finish(version)

    def _accept(self, answer: httpx.Response, known: _Version, offset: int) -> int:
        """Return the offset in the file at which the answer's body begins; raise for an unusable answer."""
        status = answer.status_code
        if status == HTTPStatus.OK:
            return 0
        if status in (HTTPStatus.PARTIAL_CONTENT, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE):
            begins = re.match(rf"bytes {offset}-\d+/", answer.headers.get("Content-Range", ""))
            # Some servers honour Range and ignore If-Range: halves of two versions must not be joined.
            if begins and known.agrees_with(_version(answer)):
                return offset
            self.part.unlink(missing_ok=True)
            raise _TryAgainError("the file changed while it was downloaded")
        text = f"{status} {answer.reason_phrase}".strip()
        if status in _TRANSIENT or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise _TryAgainError(f"the server answered {text}", _retry_after(answer))
        raise self._unreachable(f"cannot download {self.shown}: the server answered {text}")

    def _receive(self, answer: httpx.Response, offset: int, total: int | None) -> None:
        if total is not None and shutil.disk_usage(self.folder).free < total - offset:
            raise RetrainError(
                f"not enough space in {self.folder}: {self.shown} needs {(total - offset) / 1e6:.0f} MB more",
                "free some space or choose another RETRAIN_HOME",
            )
        with self.part.open("r+b" if offset else "wb") as file:
            file.seek(offset)
            file.truncate()
            # In pieces as they arrive: larger ones are buffered, and lost when the connection breaks.
            for chunk in answer.iter_raw():
                if total is None and file.tell() + len(chunk) > MOST_BYTES:
                    self.part.unlink()
                    raise self._unreachable(
                        f"gave up {self.shown}: the server does not say how long it is, and it is over "
                        f"{MOST_BYTES / 1e9:g} GB"
                    )
                file.write(chunk)
                self.progress(ImportProgress("download", file.tell(), total, "bytes"))

    def _finish(self, version: _Version) -> None:
        size = self._size()
        with self.part.open("rb") as file:
            os.fsync(file.fileno())
        # The file first: killed in between, an old description makes the next process fetch it again, while a new
        # one would be trusted on an old file.
        self.part.replace(self.target)
        self._save(self.target, version)
        self._described(self.part).unlink(missing_ok=True)
        self.progress(ImportProgress("download", size, size, "bytes"))

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _described(self, path: Path) -> Path:
        return path.with_name(f"{path.name}.json")

    def _save(self, path: Path, version: _Version) -> None:
        write_atomic(self._described(path), json.dumps(asdict(version)).encode())

    def _version_of(self, path: Path) -> _Version:
        try:
            return _Version(**json.loads(self._described(path).read_text()))
        except (OSError, ValueError, TypeError):
            return _Version(length=path.stat().st_size if path == self.target else None)

    def _unreachable(self, message: str) -> Unreachable:
        by_hand = "download it by hand, on another machine if necessary, and run `retrain import FILE.zip`"
        return Unreachable(message, f"check the address and the network, or {by_hand}")

    def _disk_error(self, error: OSError) -> RetrainError:
        return RetrainError(
            f"cannot write the download to {self.folder}: {error.strerror or error}",
            "free some space, or choose another RETRAIN_HOME; what was downloaded is kept",
        )


def _version(answer: httpx.Response) -> _Version:
    headers = answer.headers
    partial = answer.status_code == HTTPStatus.PARTIAL_CONTENT
    length = headers.get("Content-Range", "").rpartition("/")[2] if partial else headers.get("Content-Length", "")
    return _Version(headers.get("ETag"), headers.get("Last-Modified"), int(length) if length.isdecimal() else None)


def _retry_after(answer: httpx.Response) -> float:
    seconds = answer.headers.get("Retry-After", "")
    return min(float(seconds), _LONGEST_PAUSE) if seconds.isdecimal() else 0


def _reason(error: Exception) -> str:
    """Return an error in one line; httpx's timeouts have no text."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
