"""Commands that stay until they are told to end: Ctrl-C, SIGTERM and a closed terminal say the same."""

from __future__ import annotations

import signal
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def interrupt_on_signals() -> None:
    """Raise KeyboardInterrupt on each, also where a shell that started us in the background ignores Ctrl-C."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt

    for number in SIGNALS:
        signal.signal(number, interrupt)


def ignore_signals() -> None:
    """Do not be interrupted again."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
