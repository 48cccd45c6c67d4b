"""CUDA's libraries for TensorFlow: opened from NVIDIA's packages beside it, and asked for as TensorFlow asks.

TensorFlow 2.21 opens CUDA's libraries by their names when it first lists devices, and searches some folders beside
itself. Not the one of cuSOLVER: with every package installed it misses that library, and lists no GPU. The loader gives
a library that this process has opened already to anyone who asks for its name.
"""

from __future__ import annotations

import ctypes
import importlib.util
from contextlib import suppress
from pathlib import Path

from infra.processes.driver import LIBRARY

# CUDA's major version -> the files below site-packages/nvidia, each behind those that it needs.
LIBRARIES = {
    12: (
        "cuda_runtime/lib/libcudart.so.12",
        "nvjitlink/lib/libnvJitLink.so.12",
        "cuda_nvrtc/lib/libnvrtc.so.12",
        "cublas/lib/libcublasLt.so.12",
        "cublas/lib/libcublas.so.12",
        "cufft/lib/libcufft.so.11",
        "curand/lib/libcurand.so.10",
        "cusparse/lib/libcusparse.so.12",
        "cusolver/lib/libcusolver.so.11",
        "cuda_cupti/lib/libcupti.so.12",
        "nccl/lib/libnccl.so.2",
        "cudnn/lib/libcudnn.so.9",
        "cudnn/lib/libcudnn_graph.so.9",
        "cudnn/lib/libcudnn_ops.so.9",
        "cudnn/lib/libcudnn_cnn.so.9",
        "cudnn/lib/libcudnn_adv.so.9",
        "cudnn/lib/libcudnn_heuristic.so.9",
        "cudnn/lib/libcudnn_engines_precompiled.so.9",
        "cudnn/lib/libcudnn_engines_runtime_compiled.so.9",
    ),
}
# What XLA starts and reads; TensorFlow finds the folder cuda_nvcc beside itself.
TOOLS = ("cuda_nvcc/bin/ptxas", "cuda_nvcc/nvvm/libdevice/libdevice.10.bc")


def open_where_useful() -> None:
    """Open all libraries if this machine has an NVIDIA driver, before TensorFlow looks for them."""
    with suppress(OSError):
        ctypes.CDLL(LIBRARY)
        open_libraries()


def open_libraries() -> None:
    """Open those libraries that NVIDIA's packages have here; others may be where the loader searches by itself."""
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec else ():
        for path in (Path(folder) / file for files in LIBRARIES.values() for file in files):
            with suppress(OSError):
                ctypes.CDLL(str(path))


def missing_libraries() -> list[str]:
    """Return the libraries that TensorFlow cannot open, by the names that it asks for.

    None for a TensorFlow without CUDA, and for a CUDA version whose libraries are not listed here.
    """
    import tensorflow as tf

    missing = []
    for name in (Path(file).name for file in LIBRARIES.get(int(built_for().partition(".")[0] or 0), ())):
        try:
            # It opens any library, and only then looks for operations in it.
            tf.load_op_library(name)
        except tf.errors.NotFoundError:
            missing.append(name)
    return missing


def built_for() -> str:
    """Return the CUDA version that this TensorFlow is built for, such as ``12.5.1``; empty without CUDA."""
    import tensorflow as tf

    return str(tf.sysconfig.get_build_info().get("cuda_version", ""))
