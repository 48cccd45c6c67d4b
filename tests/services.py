"""Servers that tests start for themselves on loopback, on free ports, and stop again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet import free_port

OWNER = "postgres"


def _postgres(name: str) -> str:
    """Return where one of PostgreSQL's programs is; Debian keeps them off the path."""
    found = shutil.which(name) or next(map(str, sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))[::-1]), None)
    if found is None:
        pytest.skip(f"PostgreSQL is not installed (no {name}): apt-get install postgresql")
    return found


@contextlib.contextmanager
def postgres_server(*databases: str) -> Iterator[str]:
    """Start a PostgreSQL cluster with some databases; yield its address, ``postgresql://user:password@host:port``."""
    initdb, postgres, createdb = map(_postgres, ("initdb", "postgres", "createdb"))
    # It refuses to run as root, and its owner cannot look into pytest's own folders.
    user = OWNER if os.getuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="test-postgres-"))
    if user:
        shutil.chown(folder, user)
    port = free_port()
    quiet = {"user": user, "cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        options = ["--username=malaria", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C.UTF-8"]
        subprocess.run([initdb, *options, str(folder / "data")], check=True, **quiet)  # type: ignore[call-overload]
        tell = ["-c", "fsync=off", "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}"]
        server = subprocess.Popen(  # type: ignore[call-overload]
            [postgres, "-D", str(folder / "data"), "-p", str(port), *tell], **quiet
        )
        try:
            for name in databases:
                _create(createdb, port, name)
            yield f"postgresql://malaria:none@127.0.0.1:{port}"
        finally:
            server.send_signal(signal.SIGINT)  # "fast": does not wait for its clients
            server.wait(timeout=30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _create(createdb: str, port: int, name: str) -> None:
    command = [createdb, "--host=127.0.0.1", f"--port={port}", "--username=malaria", name]
    for _ in range(300):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        time.sleep(0.1)
    raise AssertionError(done.stderr)
