"""A measuring process for tests whose decoder crashes on one kind of image, and hangs on another."""

from __future__ import annotations

import os
import signal
import time

from tasks.cells.measuring_worker import serve
from validation.images.facts import ImageFacts
from validation.images.limits import SafeLimits
from validation.images.measure import inspect

CRASHES, HANGS, FAILS = b"this image crashes the decoder", b"this image never ends", b"this one triggers a bug"


def frail(data: bytes, limits: SafeLimits) -> ImageFacts:
    if data == CRASHES:
        os.kill(os.getpid(), signal.SIGSEGV)
    if data == HANGS:
        time.sleep(600)
    if data == FAILS:
        raise ZeroDivisionError("an unforeseen image")
    return inspect(data, limits)


if __name__ == "__main__":
    serve(frail)
