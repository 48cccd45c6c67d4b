"""Which GPUs there are, and one for each training. The driver's own tool is stood in for by one that talks alike."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from infra.processes.driver import VISIBLE
from infra.processes.gpus import gpus, own_gpu

pytestmark = pytest.mark.thorough

SMI = """#!/bin/sh
echo "GPU 0: NVIDIA H200 (UUID: GPU-5d3c)"
echo "  MIG 1g.18gb     Device  0: (UUID: MIG-1)"
echo "GPU 1: NVIDIA H200 (UUID: GPU-77aa)"
"""


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VISIBLE, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def driver(folder: Path, script: str) -> None:
    (folder / "nvidia-smi").write_text(script)
    (folder / "nvidia-smi").chmod(0o755)


def test_gpus_are_what_the_driver_lists(tmp_path: Path) -> None:
    driver(tmp_path, SMI)
    assert gpus() == ["0", "1"]


def test_a_driver_that_fails_is_no_gpu(tmp_path: Path) -> None:
    driver(tmp_path, "#!/bin/sh\necho 'NVIDIA-SMI has failed' >&2\nexit 9\n")
    assert gpus() == []


@pytest.mark.parametrize(("said", "found"), [("", []), ("-1", []), ("1", ["1"]), ("0, GPU-77aa", ["0", "GPU-77aa"])])
def test_what_cuda_is_told_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, found: list[str]
) -> None:
    driver(tmp_path, SMI)
    monkeypatch.setenv(VISIBLE, said)
    assert gpus() == found


def test_without_a_gpu_nothing_is_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, "")
    with own_gpu(tmp_path / "gpus") as own:
        assert own == {}


def test_two_trainings_get_a_gpu_each_and_a_third_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, "0,1")
    third: list[dict[str, str]] = []

    def training() -> None:
        with own_gpu(tmp_path) as own:
            third.append(own)

    with own_gpu(tmp_path) as first:
        assert first == {VISIBLE: "0"}
        with own_gpu(tmp_path) as second:
            assert second == {VISIBLE: "1"}
            waiting = threading.Thread(target=training)
            waiting.start()
            waiting.join(0.3)
            assert third == []
    waiting.join(10)
    assert third in ([{VISIBLE: "0"}], [{VISIBLE: "1"}])
