"""Services of this machine: long-running child processes with a log each, restarted when they end."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.environment import CODE_ROOT
from infra.processes.parent import PROCESS_TAG, kill_tagged, make_tag
from validation.errors import RetrainError

log = logging.getLogger(__name__)

# A service that ran this long was healthy: its failures are counted from zero again.
WELL_AFTER_SECONDS = 300.0
LONGEST_WAIT_SECONDS = 60.0
LARGEST_LOG = 20_000_000


@dataclass
class Service:
    """One child process: ``python -m module argument ...``."""

    name: str
    arguments: Sequence[str]
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    failures: int = 0
    again_at: float = 0.0


class Supervisor:
    """All services of one parent process. They and all their descendants end with it, however it ends."""

    def __init__(self, logs: Path) -> None:
        self.mark = make_tag(os.getpid())
        self._logs = logs
        self._services: list[Service] = []
        # In its own session and without the tag: it must outlive this process for a moment.
        self._reaper = subprocess.Popen(
            [sys.executable, "-m", "infra.processes.parent", "kill-orphans", self.mark],
            cwd=CODE_ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip

    def start(self, name: str, arguments: Sequence[str], environment: dict[str, str]) -> Service:
        """Start a service and keep it running."""
        self._logs.mkdir(parents=True, exist_ok=True)
        service = Service(name, arguments, {**environment, PROCESS_TAG: self.mark}, self._logs / f"{name}.log")
        self._services.append(service)
        self._spawn(service)
        return service

    def wait(self, service: Service, ready: Callable[[], bool], seconds: float) -> None:
        """Wait until a service is ready.

        Raises:
            RetrainError: when it ends, or is not ready in time; names its log.
        """
        until = time.monotonic() + seconds
        while time.monotonic() < until and service.process is not None and service.process.poll() is None:
            if ready():
                return
            time.sleep(0.1)
        raise RetrainError(f"{service.name} did not start: {last_line(service.log)}", f"its log: {service.log}")

    def supervise_once(self) -> None:
        """Restart services that have ended, with growing delays; keep logs from filling the disk."""
        now = time.monotonic()
        for service in self._services:
            _cut(service.log)
            code = service.process.poll() if service.process else None
            if code is not None:
                service.failures = 1 if now - service.started > WELL_AFTER_SECONDS else service.failures + 1
                wait = min(2.0 ** (service.failures - 1), LONGEST_WAIT_SECONDS)
                service.process, service.again_at = None, now + wait
                log.error("%s ended (code %s), restart in %.0f s; its log: %s", service.name, code, wait, service.log)
            if service.process is None and now >= service.again_at:
                self._spawn(service)

    def stop(self, names: Sequence[str], *, grace: float) -> None:
        """End services: terminate, wait ``grace`` seconds in all, then kill."""
        chosen = [service for service in self._services if service.name in names]
        self._services = [service for service in self._services if service.name not in names]
        running = [service.process for service in chosen if service.process is not None]
        for process in running:
            process.terminate()
        until = time.monotonic() + grace
        for process in running:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def end_all(self, *, but: Sequence[str] = ()) -> None:
        """Kill all remaining descendants of the services, except the services named."""
        kept = {service.process.pid for service in self._services if service.name in but and service.process}
        if left := kill_tagged(self.mark, but=kept):
            log.error("these processes could not be ended: %s", ", ".join(map(str, left)))

    def close(self) -> None:
        """End all services and what they started."""
        self.stop([service.name for service in self._services], grace=0.0)
        self.end_all()
        self._reaper.kill()
        self._reaper.wait()

    def _spawn(self, service: Service) -> None:
        with service.log.open("ab") as output:
            # In its own session: Ctrl-C is for the parent, which ends its services in order.
            service.process = subprocess.Popen(
                [sys.executable, "-m", "infra.processes.parent", str(os.getpid()), *service.arguments],
                cwd=CODE_ROOT, env=service.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        service.started = time.monotonic()


def last_line(path: Path) -> str:
    """Return the last line of a log."""
    try:
        lines = path.read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1].strip()[:300] if lines else ""


def _cut(path: Path) -> None:
    """Rotate a log that has grown large, keeping one older part. Its writer appends, so it may be emptied in place."""
    try:
        if path.stat().st_size > LARGEST_LOG:
            shutil.copyfile(path, path.with_suffix(".log.1"))
            os.truncate(path, 0)
    except OSError as error:
        log.warning("cannot cut the log %s: %s", path, error)
