"""Near duplicates: what was compared before is not compared again, and the result is that of comparing all."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd
import pytest

from tasks.cells.near_pairs import near_pairs, pairs_path
from tasks.context import Context
from validation.images.duplicates import compare_all, near_duplicate_findings
from validation.images.fingerprints import near_duplicates

RANDOM = np.random.default_rng(1)


def pool(count: int) -> pd.DataFrame:
    """Images of which every third is a copy of another, a little different; one shows nothing."""
    waves = RANDOM.integers(-127, 128, (count, 192)).astype(np.int8)
    for copy in range(2, count, 3):
        waves[copy] = np.clip(waves[RANDOM.integers(copy)] + RANDOM.integers(-3, 4, 192), -127, 127)
    prints = [row.tobytes().hex() for row in waves]
    prints[0] = ""
    return pd.DataFrame(
        {
            "key": [f"labeled/{number:04}.png" for number in range(count)],
            "pixels": [hashlib.sha256(str(number).encode()).hexdigest() for number in range(count)],
            "fingerprint": prints,
            "patient": "one",
            "label": "Uninfected",
            "first_seen": RANDOM.integers(0, 5, count),
        }
    )


def test_any_nights_come_to_what_comparing_all_comes_to(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images come, go, come back and change their order; a night without new ones compares nothing."""
    compared: list[int] = []

    def counted(fingerprints: list[str], known: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> list[tuple[int, int]]:
        compared.append(int((~known).sum()))
        return near_duplicates(fingerprints, known)

    monkeypatch.setattr("tasks.cells.near_pairs.near_duplicates", counted)
    images, seen, found = pool(120), set[str](), 0
    for _ in range(12):
        night = images.sample(int(RANDOM.integers(40, 121)), random_state=int(RANDOM.integers(1_000)))
        pairs = near_pairs(context, night)
        assert pairs == compare_all(night)
        assert near_duplicate_findings(night, lambda facts: near_pairs(context, facts)) == near_duplicate_findings(
            night
        )
        assert compared[-2] == len(set(night["pixels"]) - seen)
        assert compared[-1] == 0
        seen, found = set(night["pixels"]), found + len(pairs)
    assert found > 100


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_file_costs_time_only(damage: str, context: Context) -> None:
    images = pool(30)
    near_pairs(context, images)
    path = pairs_path(context)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes({"cut": bytes(data[:200]), "flipped": bytes(data), "empty": b""}[damage])
    assert near_pairs(context, images) == compare_all(images)
    assert near_pairs(context, images.iloc[::-1]) == compare_all(images.iloc[::-1])
