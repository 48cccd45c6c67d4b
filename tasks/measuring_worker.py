"""The process in which images are decoded and measured, so that a decoder's crash costs one image and not the night.

``python -m infra.processes PARENT tasks.measuring_worker`` says "ready", then answers requests, one JSON line each
way: the request is [max_pixels, [[path, sha256], ...]], and every image gets a line of its own as soon as it is
measured, so that the parent knows which one it died of. It imports little: it is started often.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import cv2

from validation.digest import sha256
from validation.facts import ImageFacts
from validation.measure import inspect
from validation.refusals import BadImage, SafeLimits

READY = "ready"
# What an answer begins with.
FACTS, REFUSED, MISSING = "facts", "refused", "missing"

Inspect = Callable[[bytes, SafeLimits], ImageFacts]


def serve(look: Inspect = inspect) -> None:
    """Answer requests until the parent closes the pipe."""
    # One process a core: more threads would only get in each other's way.
    cv2.setNumThreads(1)
    answers = sys.stdout
    sys.stdout = sys.stderr  # whatever a library prints is no answer
    print(READY, file=answers, flush=True)
    for line in sys.stdin:
        max_pixels, images = json.loads(line)
        limits = SafeLimits(max_pixels)
        for path, digest in images:
            print(json.dumps(_answer(Path(path), digest, limits, look)), file=answers, flush=True)


def _answer(path: Path, digest: str, limits: SafeLimits, look: Inspect) -> list[Any]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [MISSING]
    if sha256(data) != digest:
        return [MISSING]
    try:
        return [FACTS, *astuple(look(data, limits))]
    except BadImage as bad:
        return [REFUSED, bad.reason, bad.detail]
    except Exception as error:  # a bug of ours must cost this image by name, like any other
        return [REFUSED, "damaged image", f"{type(error).__name__}: {error}"[:200]]


if __name__ == "__main__":
    serve()
