"""Worker processes that answer each item with a line of JSON: isolated, with a timeout, replaced when they die."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import IO, Any

from infra.environment import CODE_ROOT
from infra.inherited import of_work
from validation.errors import RetrainError

# Importing OpenCV takes 0.1 s, and many times that on a loaded machine with a cold disk.
START_SECONDS = 120.0
_SPARE_SECONDS = 10.0
_MOST_DEATHS_IN_A_ROW = 20
_ENOUGH = "is the installation complete, and is there enough memory?"


class WorkerDied(Exception):
    """A worker ended, or was killed, before it answered."""

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.how = how


class Worker:
    """A process of ``module``, tied to this one (processes.parent), that prints a first line when it is ready."""

    def __init__(self, module: str) -> None:
        self.module = module
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        # CODE_ROOT comes first on the child's path; in its own session, since Ctrl-C is for the parent, which ends it.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "infra.processes.parent", str(os.getpid()), module],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, bufsize=0,
            cwd=CODE_ROOT, env=of_work(os.environ), start_new_session=True,
        )  # fmt: skip
        self._buffer = b""
        try:
            self._line(START_SECONDS)
        except WorkerDied as died:
            output = self._last_errors()
            self.close()
            raise RetrainError(f"a worker process ({module}) does not start: {died.how}\n{output}", _ENOUGH) from None

    def ask(self, request: Any, answers: int, *, seconds: float) -> Iterator[Any]:
        """Send one request and yield its answers, each of which may take ``seconds``.

        Raises:
            WorkerDied: the process crashed or took too long, and is closed. Its answers until then were yielded.
        """
        assert self._process.stdin is not None  # noqa: S101
        try:
            try:
                self._process.stdin.write(json.dumps(request).encode() + b"\n")
            except BrokenPipeError:
                raise WorkerDied(self._how_it_ended()) from None
            for _ in range(answers):
                yield json.loads(self._line(seconds))
        except WorkerDied:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        """Whether the process is running."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the process. May be called twice."""
        if self.alive:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _line(self, seconds: float) -> bytes:
        assert self._process.stdout is not None  # noqa: S101
        pipe, until = self._process.stdout.fileno(), time.monotonic() + seconds
        while b"\n" not in self._buffer:
            # poll, not select: a night may have more than 1,024 files open.
            poll = select.poll()
            poll.register(pipe, select.POLLIN)
            if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
                raise WorkerDied(f"gave no answer within {seconds:g} s")
            read = os.read(pipe, 1 << 16)
            if not read:
                raise WorkerDied(self._how_it_ended())
            self._buffer += read
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _how_it_ended(self) -> str:
        code = self._process.wait()
        return f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"

    def _last_errors(self) -> str:
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - 2_000))
        return self._errors.read().decode(errors="replace").strip()


class SpareWorkers:
    """Keeps one idle worker for a few seconds, so that a series of small batches starts a single process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spare: Worker | None = None
        self._timer: threading.Timer | None = None
        atexit.register(self.close)

    def take(self, module: str) -> Worker:
        """Return the spare worker if it runs ``module``, else a new one."""
        with self._lock:
            spare, self._spare = self._spare, None
            if self._timer is not None:
                self._timer.cancel()
        if spare is not None:
            if spare.module == module and spare.alive:
                return spare
            spare.close()
        return Worker(module)

    def give_back(self, worker: Worker) -> None:
        """Keep an idle worker, or close it when there is one already."""
        with self._lock:
            if self._spare is None and worker.alive:
                self._spare = worker
                self._timer = threading.Timer(_SPARE_SECONDS, self.close)
                self._timer.daemon = True
                self._timer.start()
                return
        worker.close()

    def close(self) -> None:
        """End the spare worker."""
        with self._lock:
            spare, self._spare = self._spare, None
        if spare is not None:
            spare.close()


SPARE = SpareWorkers()


class WorkerPool:
    """Workers that answer batches concurrently; an item that kills its worker fails alone, not its batch."""

    def __init__(self, module: str, size: int, *, seconds: float) -> None:
        self.module, self.size, self.seconds = module, size, seconds
        self._free: list[Worker] = []  # its append and pop are atomic

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._free:
            SPARE.give_back(worker)
        self._free = []

    def answer(self, setting: Any, items: Sequence[Any]) -> list[Any]:
        """Return the answer to each item, or the WorkerDied that it caused.

        A request is [setting, careful, items]; a careful one is answered item by item, each at once. After a death the
        unanswered items are sent as a careful request, so that the next death shows which item caused it. That item is
        sent once more, alone, to a new process, and fails if that dies too, so that no item fails for what the machine
        did. Each thread that calls this has its own worker.

        Raises:
            RetrainError: when so many items in a row ended their workers that the items cannot be the cause.
        """
        answered: list[Any] = []
        careful = suspect = False
        while len(answered) < len(items):
            rest = items[len(answered) :]
            asked = rest[:1] if suspect else rest
            worker = Worker(self.module) if suspect else self._take()
            try:
                for answer in worker.ask([setting, careful, asked], len(asked), seconds=self.seconds):
                    answered.append(answer)
                    suspect = False
            except WorkerDied as died:
                if suspect:
                    answered.append(died)
                    self._check(answered)
                suspect = careful and not suspect
                careful = True
            except BaseException:
                worker.close()
                raise
            if worker.alive:
                self._free.append(worker)
        return answered

    def _check(self, answered: list[Any]) -> None:
        last = answered[-_MOST_DEATHS_IN_A_ROW:]
        if len(last) == _MOST_DEATHS_IN_A_ROW and all(isinstance(answer, WorkerDied) for answer in last):
            raise RetrainError(
                f"{len(last)} items in a row ended their worker process ({self.module}): the last {last[-1].how}",
                f"{_ENOUGH} the items themselves may be good",
            )

    def _take(self) -> Worker:
        try:
            return self._free.pop()
        except IndexError:
            return SPARE.take(self.module)
