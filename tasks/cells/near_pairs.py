"""The nearly equal cells of a night: only those that this machine has not compared before are compared with all."""

from __future__ import annotations

import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd

from infra.local.files import write_atomic
from tasks.context import Context
from validation.images.duplicates import Pairs
from validation.images.facts import FACTS_VERSION
from validation.images.fingerprints import ALIKE, near_duplicates


def pairs_path(context: Context) -> Path:
    """Return where the pairs are kept; losing the file costs only time."""
    return context.workspace.home / "cache" / f"near-duplicates-{FACTS_VERSION}-{ALIKE}.npz"


def near_pairs(context: Context, facts: pd.DataFrame) -> Pairs:
    """Return the positions (i, j), i < j, of nearly equal images, sorted, and keep them for the next night.

    ``facts``: a row for each image (``pixels``, the SHA-256 of what is seen, each once; ``fingerprint``). Which are
    alike follows from the pixels alone: what is kept of a night holds, whatever was moved or removed since.
    """
    images = pd.Index(facts["pixels"])
    before, kept = _kept(pairs_path(context))
    known = images.isin(before)
    places = images.get_indexer(before)[kept] if len(kept) else kept
    old = np.sort(places[(places >= 0).all(axis=1)], axis=1)
    new = near_duplicates(facts["fingerprint"].tolist(), known)
    pairs = sorted([*map(tuple, old.tolist()), *new])
    if not known.all() or len(before) != len(images):
        held = BytesIO()
        np.savez(held, images=images.to_numpy(dtype="S64"), pairs=np.array(pairs, np.int64).reshape(-1, 2))
        write_atomic(pairs_path(context), held.getvalue())
    return pairs


def _kept(path: Path) -> tuple[pd.Index[str], np.ndarray[tuple[int, int], np.dtype[np.int64]]]:
    """Return the images that were compared with each other, and the pairs among them by position."""
    try:
        with np.load(BytesIO(path.read_bytes()), allow_pickle=False) as held:  # checks each array by its CRC
            return pd.Index(held["images"].astype(str)), held["pairs"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return pd.Index([], dtype=str), np.zeros((0, 2), np.int64)
