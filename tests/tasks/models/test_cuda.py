"""CUDA's libraries: each framework finds all of its own, of the major version that it was built for. No GPU is needed.

What a framework asks for is opened as it opens it, in a process of its own.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from infra.deploy.images.pick import package_name, pick_image
from infra.deploy.install import Choice, choose, part_of_lock
from tasks.models.keras.cuda import LIBRARIES, TOOLS
from tests import ROOT

LOCK = (ROOT / "requirements.txt").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAMES = {major: [Path(file).name for file in files] for major, files in LIBRARIES.items()}

TORCH = """
import ctypes, json, os, sys, torch
def loaded(name):
    try:
        return bool(ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_NOW))
    except OSError:
        return False
missing = [name for name in json.loads(sys.argv[1]) if not loaded(name)]
cudnn = (torch.backends.cudnn.version() or 0) // 10_000
print(json.dumps({"cuda": torch.version.cuda, "cudnn": cudnn, "missing": missing}))
"""
# At the end TensorFlow's own check, without which it lists no GPU: 1 is its status for "all libraries are there".
KERAS = """
import ctypes, json, pathlib, sys
from tasks.models.keras import cuda
if sys.argv[1] == "opened":
    cuda.open_libraries()
import tensorflow as tf
library = ctypes.CDLL(str(pathlib.Path(tf.__file__).parent / "libtensorflow_framework.so.2"))
check = getattr(library, "_ZN3tsl8internal9DsoLoader22TryDlopenCUDALibrariesEv", None)
status = (ctypes.c_uint64 * 4)()
if check:
    check.argtypes, check.restype = [ctypes.c_void_p], ctypes.c_void_p
    check(ctypes.addressof(status))
build = tf.sysconfig.get_build_info()
print(json.dumps({"cuda": cuda.built_for(), "cudnn": int(build.get("cudnn_version", "0").split(".")[0]),
                  "missing": cuda.missing_libraries(), "all there": status[0] == 1}))
"""


def asked(program: str, argument: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", program, argument], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


INSTALLED = {package_name(str(one.name)) for one in metadata.distributions()}
needs_cuda_keras = pytest.mark.skipif(
    "tensorflow" not in INSTALLED, reason="TensorFlow is installed without CUDA (keras-cpu)"
)
needs_cuda_torch = pytest.mark.skipif(
    not any(name.startswith("nvidia-cudnn-") for name in INSTALLED), reason="torch is installed without CUDA"
)


@needs_cuda_torch
@pytest.mark.slow(1)
def test_torch_finds_every_library() -> None:
    said = asked(TORCH, json.dumps(NAMES[12]))
    # cuDNN opens its parts itself, from its own folder, when a convolution needs them.
    assert [name for name in said["missing"] if not name.startswith("libcudnn_")] == []
    assert (said["cuda"].split(".")[0], said["cudnn"]) == ("12", 9)


@needs_cuda_keras
@pytest.mark.slow(1)
def test_tensorflow_finds_every_library() -> None:
    said = asked(KERAS, "opened")
    assert said["missing"] == []
    assert said["all there"]
    assert (said["cuda"].split(".")[0], said["cudnn"]) == ("12", 9)


@needs_cuda_keras
@pytest.mark.slow(1)
def test_without_help_tensorflow_misses_some_and_says_which() -> None:
    """When this fails, TensorFlow has learned to find them, and tasks/models/keras/cuda.py need open none."""
    said = asked(KERAS, "not opened")
    assert "libcusolver.so.11" in said["missing"]
    assert not said["all there"]


@needs_cuda_keras
def test_xla_has_its_compiler_and_its_device_library() -> None:
    folder = Path(str(metadata.distribution("nvidia-cuda-nvcc-cu12").locate_file("nvidia")))
    compiler, library = (folder / file for file in TOOLS)
    shown = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    assert re.search(r"release 12\.", shown)
    assert library.read_bytes()[:2] == b"BC", "LLVM bitcode"


@pytest.mark.parametrize("part", ["image fastai", "image keras", "a machine with a GPU"])
def test_every_package_list_has_every_library(part: str) -> None:
    """By the package that each file is in: nvidia/cuda_runtime is nvidia-cuda-runtime-cu12's."""
    if part.startswith("image "):
        lock = pick_image(part.removeprefix("image "), LOCK, PROJECT)
    else:
        lock = part_of_lock(Choice(choose("Linux", "x86_64", 1)[0]), LOCK, PROJECT)
    packages = {package_name(line): line.split()[0].partition("==")[2] for line in lock.splitlines() if "==" in line}
    files = [*LIBRARIES[12], *(() if part == "image fastai" else TOOLS)]
    for file in files:
        package = f"nvidia-{file.split('/')[0].replace('_', '-')}-cu12"
        assert package in packages, file
        major = re.search(r"\.so\.(\d+)$", file)
        if major and not package.startswith(("nvidia-nvjitlink", "nvidia-cusparse")):
            assert packages[package].split(".")[0] == major[1], file
    assert not [name for name in packages if name.endswith("-cu13") or name == "cuda-toolkit"]
