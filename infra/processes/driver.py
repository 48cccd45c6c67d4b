"""What NVIDIA's driver says of this machine's GPUs. Standard library only: an install asks before anything is there."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess

VISIBLE = "CUDA_VISIBLE_DEVICES"
LIBRARY = "libcuda.so.1"


def listed_gpus() -> int:
    """Return how many GPUs the driver's own tool lists; 0 on a machine without."""
    if shutil.which("nvidia-smi") is None:
        return 0
    try:
        output = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return 0  # a driver without a GPU, or the reverse
    return sum(line.startswith("GPU ") for line in output.splitlines())


def driver_problem(cuda: str) -> str:
    """Return why a program that is built for CUDA ``cuda``, such as ``12.8``, gets no GPU; empty if it gets one.

    A driver runs every program of the CUDA version that it knows, and of older ones, whatever the minor version.
    """
    try:
        driver = ctypes.CDLL(LIBRARY)
    except OSError:
        return f"no NVIDIA driver: {LIBRARY} is not found"
    known, count = ctypes.c_int(), ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(known))
    if known.value // 1000 < int(cuda.partition(".")[0]):
        return (
            f"the NVIDIA driver is too old: it knows CUDA {known.value // 1000}.{known.value % 1000 // 10} at most, "
            f"and CUDA {cuda} is needed"
        )
    if hidden := hidden_gpus():
        return hidden
    if code := driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return f"the NVIDIA driver reports no usable GPU (CUDA error {code}{_chosen()})"
    return "" if count.value else f"the NVIDIA driver reports no GPU{_chosen()}"


def hidden_gpus() -> str:
    """Return that CUDA is told to use no GPU; empty if it is not."""
    told = os.environ.get(VISIBLE)
    if told is None or told.split(",")[0].strip() not in ("", "-1"):
        return ""
    return f"hidden by {VISIBLE}={told!r}"


def _chosen() -> str:
    told = os.environ.get(VISIBLE)
    return "" if told is None else f"; {VISIBLE}={told!r}"
