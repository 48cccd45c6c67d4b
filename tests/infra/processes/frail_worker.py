"""A worker for tests: it answers in capitals, and crashes, hangs or exits on command."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path


def answer(item: str) -> str:
    what, _, path = item.partition(" once: ")
    if path:
        if Path(path).exists():
            return what.upper()
        Path(path).touch()
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "leave":
        sys.exit(3)
    if what == "hang":
        time.sleep(600)
    return item.upper()


if __name__ == "__main__":
    sys.stdout.write('"ready"\n')
    sys.stdout.flush()
    for line in sys.stdin:
        _, careful, items = json.loads(line)
        for wanted in items:
            sys.stdout.write(json.dumps(answer(wanted)) + "\n")
            if careful:
                sys.stdout.flush()
        sys.stdout.flush()
