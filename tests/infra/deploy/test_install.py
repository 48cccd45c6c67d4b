"""What is installed on a machine: chosen for it or by a person, once, and from the lock alone."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from infra.deploy import install as installer
from infra.deploy.install import CUDA, Choice, choose, locked, main, parse, part_of_lock
from tests import ROOT

LOCK = (ROOT / "requirements.txt").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def names(choice: Choice) -> set[str]:
    return set(locked(part_of_lock(choice, LOCK, PROJECT)))


@pytest.mark.parametrize(
    ("system", "machine", "gpus", "extras"),
    [
        ("Linux", "x86_64", 2, ("fastai", "keras")),
        ("Linux", "x86_64", 0, ("fastai", "keras-cpu")),
        ("Linux", "aarch64", 1, ("fastai", "keras")),
        ("Darwin", "arm64", 0, ("fastai", "keras")),
    ],
)
def test_a_machine_gets_cuda_for_keras_where_it_has_a_gpu(
    system: str, machine: str, gpus: int, extras: tuple[str, ...]
) -> None:
    chosen, why = choose(system, machine, gpus)
    assert chosen == extras
    assert (machine if machine != "x86_64" else "GPU") in why


@pytest.mark.parametrize(
    ("said", "extras"), [("none", ()), ("keras", ("keras",)), ("fastai,keras-cpu", ("fastai", "keras-cpu"))]
)
def test_a_person_chooses_otherwise(said: str, extras: tuple[str, ...]) -> None:
    assert parse(said) == extras


@pytest.mark.parametrize("said", [" ", "torch", "none keras", "keras keras-cpu"])
def test_what_cannot_be_installed_is_refused(said: str) -> None:
    with pytest.raises(ValueError, match="expected none, or fastai and one of keras and keras-cpu"):
        parse(said)


def test_the_parts_of_the_lock() -> None:
    none, fastai, keras = names(Choice(())), names(Choice(("fastai",))), names(Choice(("keras",)))
    cpu = names(Choice(("keras-cpu",)))
    assert "setuptools" in none, "installs this project itself"
    assert {"torch", "triton", "nvidia-cudnn-cu12"} <= fastai - none
    assert {"tensorflow", "nvidia-cudnn-cu12", "nvidia-cuda-nvcc-cu12"} <= keras - none
    assert not {"torch", "tensorflow-cpu"} & keras
    assert {"tensorflow-cpu", "keras", "tf2onnx"} <= cpu - none
    assert not [name for name in cpu | none if name.startswith(CUDA) or name == "tensorflow"]
    assert "pytest" not in none | fastai | keras | cpu
    assert "pytest" in names(Choice((), dev=True))


def test_torch_from_elsewhere_comes_without_its_cuda_libraries() -> None:
    """What else torch needs is the lock's."""
    whole, rest = names(Choice(("fastai",))), names(Choice(("fastai",), torch_index="https://builds"))
    assert whole - rest == {name for name in whole if name.startswith(CUDA)} | {"torch", "torchvision"}
    # TensorFlow's own stay.
    both = names(Choice(("fastai", "keras"), torch_index="https://builds"))
    assert names(Choice(("keras",))) <= both
    assert not {"torch", "triton"} & both


class TestOnce:
    @pytest.fixture
    def installed(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Choice]:
        made: list[Choice] = []

        def install(venv: Path, choice: Choice, lock: str, why: str) -> None:
            del lock, why
            venv.mkdir(exist_ok=True)
            made.append(choice)

        monkeypatch.setattr(installer, "install", install)
        monkeypatch.setattr(installer, "choose", lambda *_: (("fastai", "keras-cpu"), "a test"))
        monkeypatch.chdir(tmp_path)
        for name in ("requirements.txt", "pyproject.toml"):
            (tmp_path / name).write_bytes((ROOT / name).read_bytes())
        return made

    def test_what_is_installed_is_not_installed_again(self, installed: list[Choice], tmp_path: Path) -> None:
        for _ in range(2):
            main([])
        assert installed == [Choice(("fastai", "keras-cpu"))]
        (tmp_path / "requirements.txt").write_text(LOCK + "# newer\n")
        main([])
        assert len(installed) == 2

    def test_a_choice_stays_until_another_is_made(self, installed: list[Choice]) -> None:
        main(["--with", "fastai"])
        main(["--dev"])
        main([])
        main(["--with", "none"])
        assert installed == [Choice(("fastai",)), Choice(("fastai",), dev=True), Choice((), dev=True)]

    def test_an_install_that_failed_is_done_again(
        self, installed: list[Choice], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(*_: object) -> None:
            raise subprocess.CalledProcessError(1, ["pip"])

        with monkeypatch.context() as patched:
            patched.setattr(installer, "install", failing)
            with pytest.raises(SystemExit, match=r"the install failed: .*there were \d+\.\d GB for \.venv and \d+"):
                main([])
        main([])
        assert len(installed) == 1


@pytest.mark.thorough
def test_make_says_in_one_line_which_python_it_needs() -> None:
    done = subprocess.run(
        ["make", "--no-print-directory", "install", "PYTHON=/bin/false"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    said, _ = done.stderr.splitlines()
    assert said.startswith("Python 3.11, 3.12 or 3.13 with venv is needed")
    assert sys.version_info[:2] in ((3, 11), (3, 12), (3, 13))


def test_the_makefile_and_the_lock_take_the_pythons_that_the_project_names() -> None:
    assert PROJECT["requires-python"] == ">=3.11,<3.14"
    assert "(3, 11) <= sys.version_info[:2] <= (3, 13)" in (ROOT / "Makefile").read_text()
