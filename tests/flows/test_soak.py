"""A dozen nights in a row with faults drawn by chance: everything is accounted for. ``benchmarks.soak`` runs 200."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.soak import soak

NIGHTS = 12


@pytest.mark.slow
def test_a_dozen_nights_with_faults_leave_everything_accounted_for(tmp_path: Path) -> None:
    *nights, end = soak(tmp_path / "soak", NIGHTS, seed=5)
    assert end["wrong"] == []
    assert (len(nights), nights[-1]["nights"]) == (NIGHTS, NIGHTS)
    assert {night["drawn"] for night in nights} > {"nothing", "killed"}
    assert end["processes_left"] == []
    assert end["temporary_files"] == []
    assert end["pruned_at_the_end"]["problems"] == []
    assert end["reports"]["others"] == []
    assert end["reports"]["built"] > 0
