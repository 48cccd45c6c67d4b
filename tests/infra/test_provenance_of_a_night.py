"""What a night notes of its machine: enough to tell two apart, and nothing that is made up."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from infra import provenance as machine
from infra.provenance import code_revision


def test_the_machine_is_told_in_one_line() -> None:
    assert re.fullmatch(r".+, \d+ cores?, \d+ GiB memory, \w+", machine.hardware())


def test_the_versions_are_those_that_are_installed() -> None:
    assert machine.versions()["numpy"] == np.__version__


def test_peak_memory_is_counted_anew() -> None:
    if machine.peak_memory_mb() is None:
        pytest.skip("this system does not count peak memory")
    block = np.ones(25_000_000)  # 200 MB
    high = machine.peak_memory_mb()
    del block
    machine.forget_peak_memory()
    low = machine.peak_memory_mb()
    assert high is not None
    assert low is not None
    if low == high:
        pytest.skip("this system does not forget")
    assert high - low > 100


def test_outside_a_checkout_there_is_no_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "code_revision", lambda: code_revision(tmp_path))
    assert machine.revision() is None
    (tmp_path / ".git").mkdir()  # a folder that git does not take for its own
    assert machine.revision() is None
