"""The process in which images are decoded and measured, so that a decoder's crash costs one image and not the night.

``python -m infra.processes.parent PARENT tasks.cells.measuring_worker`` says "ready", then answers requests, in JSON
lines: the request is [max_pixels, careful, [[path, sha256], ...]], and each image gets one line. In a careful request
the line is sent as soon as the image is measured, so that the parent knows which image killed the process; otherwise
together with a few others, since waking the parent for each costs more than writing it. It is started often, so it
imports little.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import cv2

from validation.digest import sha256
from validation.images.facts import FACT_NAMES, ImageFacts
from validation.images.limits import BadImage, SafeLimits
from validation.images.measure import inspect

WORKER = "tasks.cells.measuring_worker"
READY = "ready"
# What an answer begins with.
FACTS, REFUSED, MISSING = "facts", "refused", "missing"

_SEND_EVERY_SECONDS = 0.02
_VALUES = attrgetter(*FACT_NAMES)

Inspect = Callable[[bytes, SafeLimits], ImageFacts]


def serve(look: Inspect = inspect) -> None:
    """Answer requests until the parent closes the pipe."""
    # One process for each core: more threads would only compete.
    cv2.setNumThreads(1)
    answers = sys.stdout
    sys.stdout = sys.stderr  # what a library prints is not an answer
    answers.write(f"{READY}\n")
    answers.flush()
    for line in sys.stdin:
        max_pixels, careful, images = json.loads(line)
        limits, sent = SafeLimits(max_pixels), time.monotonic()
        for path, digest in images:
            answers.write(f"{json.dumps(_answer(Path(path), digest, limits, look))}\n")
            if careful or time.monotonic() - sent > _SEND_EVERY_SECONDS:
                answers.flush()
                sent = time.monotonic()
        answers.flush()


def _answer(path: Path, digest: str, limits: SafeLimits, look: Inspect) -> list[Any]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [MISSING]
    if sha256(data) != digest:
        return [MISSING]
    try:
        return [FACTS, *_VALUES(look(data, limits))]
    except BadImage as bad:
        return [REFUSED, bad.reason, bad.detail]
    except Exception as error:  # a bug must cost this image by name, not the process
        return [REFUSED, "damaged image", f"{type(error).__name__}: {error}"[:200]]


if __name__ == "__main__":
    serve()
