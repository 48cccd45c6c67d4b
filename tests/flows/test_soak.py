"""A week of nights with a fault on most of them: everything is accounted for. ``benchmarks.soak`` runs 200."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.soak import soak

NIGHTS = 7
DRAWN = {"invalid batch", "junk", "champion tampered", "store away", "killed"}


# About 40 s of one core; a busy machine takes longer.
@pytest.mark.timeout(1_800)
@pytest.mark.slow
@pytest.mark.longest
def test_a_week_of_nights_with_faults_leaves_everything_accounted_for(tmp_path: Path) -> None:
    *nights, end = soak(tmp_path / "soak", NIGHTS, seed=95)
    assert end["wrong"] == []
    tampered = sum(night["drawn"] == "champion tampered" for night in nights)
    assert (len(nights), nights[-1]["nights"]) == (NIGHTS, NIGHTS + tampered)
    assert {night["drawn"] for night in nights} >= DRAWN
    assert end["processes_left"] == []
    assert end["temporary_files"] == []
    assert end["pruned_at_the_end"]["problems"] == []
    assert end["reports"]["others"] == []
    assert (end["reports"]["built"], end["reports"]["retired"]) == (NIGHTS + tampered, 0)
