"""Why a framework gets no GPU, by the driver's word. The driver's library is stood in for by one that answers alike."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from infra.processes.driver import VISIBLE, driver_problem


class Driver:
    """NVIDIA's libcuda as far as it is asked, with its own names and numbers: 12080 is CUDA 12.8."""

    def __init__(self, knows: int = 12_080, gpus: int = 1, error: int = 0) -> None:
        self.knows, self.gpus, self.error = knows, gpus, error

    def cuDriverGetVersion(self, answer: Any) -> int:  # noqa: N802
        answer._obj.value = self.knows
        return 0

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.error or flags

    def cuDeviceGetCount(self, answer: Any) -> int:  # noqa: N802
        answer._obj.value = self.gpus
        return 0


@pytest.mark.parametrize(
    ("driver", "visible", "cuda", "problem"),
    [
        (Driver(), None, "12.8", ""),
        (Driver(), "0", "12.5.1", ""),
        (Driver(knows=12_020), None, "12.8", ""),  # a driver runs every minor version of its major one
        (Driver(knows=13_000), None, "12.8", ""),
        (Driver(knows=11_080), None, "12.8", "too old: it knows CUDA 11.8 at most, and CUDA 12.8 is needed"),
        (Driver(), "", "12.8", "hidden by CUDA_VISIBLE_DEVICES=''"),
        (Driver(), "-1", "12.8", "hidden by CUDA_VISIBLE_DEVICES='-1'"),
        (Driver(error=100), None, "12.8", "no usable GPU (CUDA error 100)"),
        (Driver(error=100), "7", "12.8", "no usable GPU (CUDA error 100; CUDA_VISIBLE_DEVICES='7')"),
        (Driver(gpus=0), None, "12.8", "reports no GPU"),
    ],
)
def test_the_reason(
    driver: Driver, visible: str | None, cuda: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: driver)
    monkeypatch.delenv(VISIBLE, raising=False)
    if visible is not None:
        monkeypatch.setenv(VISIBLE, visible)
    assert driver_problem(cuda).endswith(problem)
    assert bool(driver_problem(cuda)) == bool(problem)


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert driver_problem("12.8") == "no NVIDIA driver: libcuda.so.1 is not found"
