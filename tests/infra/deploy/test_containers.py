"""The images, built without a registry and started as their user: each finds what it needs, and has no more.

Debian's packages lay the base under the tag that the Dockerfile names (the real one has a newer patch of Python 3.11).
It needs root, ``buildah`` and ``debootstrap``, as CI has them. The layers, 3 GB, stay in this user's cache
(``XDG_CACHE_HOME``), or in the folder that ``TEST_CONTAINERS`` names, under a digest of the Dockerfile and the lock:
packages are installed again only after one of these has changed, and then the layers of before are removed. The cache
may be emptied at any time. ``TEST_IMAGES=orchestration,fastai,keras`` builds those with CUDA's libraries too: gigabytes
more, so not by default. From the layers ``podman`` runs the stack of the compose file, where it can (tests.stack).
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.deploy.images.pick import IMAGES, pick
from infra.provenance import version
from tests import ROOT
from tests.builders import plain_cells
from tests.fleet import MODELS, until
from tests.stack import FILE, STAND_INS, VALUES, Stack, stack_of
from tests.test_snippets import blocks
from validation.digest import sha256

pytestmark = [pytest.mark.longest, pytest.mark.slow(minutes=10), pytest.mark.timeout(1_800)]

DOCKERFILE = "infra/deploy/images/Dockerfile"
BUILT = os.environ.get("TEST_IMAGES", "orchestration").split(",")
MIRROR = "http://deb.debian.org/debian"

Buildah = Callable[..., str]
Build = Callable[..., str]


@pytest.fixture(scope="module")
def folder() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    kept = Path(os.environ.get("TEST_CONTAINERS") or cache / "malaria-retraining").resolve()
    made_of = [(ROOT / name).read_bytes() for name in (DOCKERFILE, "requirements.txt", "infra/deploy/images/pick.py")]
    found = kept / f"containers-{sha256(b''.join(made_of))[:16]}"
    for other in set(kept.glob(f"containers-{'[0-9a-f]' * 16}")) - {found}:
        shutil.rmtree(other)
    found.mkdir(parents=True, exist_ok=True)
    return found


@pytest.fixture(scope="module")
def buildah(folder: Path) -> Buildah:
    missing = [name for name in ("buildah", "debootstrap") if shutil.which(name) is None]
    if missing or os.getuid() != 0:
        pytest.skip(f"not installed: {', '.join(missing)}" if missing else "building images needs root here")

    def call(*arguments: str | Path, ok: bool = True) -> str:
        command: list[str | Path] = ["buildah", "--root", folder / "layers", "--runroot", folder / "run", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert not ok or done.returncode == 0, (done.stdout + done.stderr)[-3_000:]
        return done.stdout.strip() if done.returncode == 0 else f"failed: {done.stderr}"

    return call


@pytest.fixture(scope="module")
def base(folder: Path, buildah: Buildah) -> None:
    """Lay Debian with Python under the tag that the Dockerfile begins from."""
    lines = (ROOT / DOCKERFILE).read_text().splitlines()
    [tag] = {line.split()[1] for line in lines if line.startswith("FROM ")}
    if not buildah("images", "--quiet", "--filter", f"reference={tag}"):
        root = folder / "debian"
        include = "--include=python3,python3-venv,ca-certificates"
        laid: list[str | Path] = ["debootstrap", "--variant=minbase", include, "bookworm", root, MIRROR]
        done = subprocess.run(laid, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"debootstrap: {(done.stdout + done.stderr).strip().splitlines()[-1]}")
        (root / "usr/bin/python").symlink_to("python3")
        container = buildah("from", "scratch")
        buildah("add", "--quiet", container, root, "/")
        buildah("commit", "--quiet", "--rm", container, f"docker.io/library/{tag}")
        shutil.rmtree(root)
    container = buildah("from", "--pull-never", tag)
    if (tried := buildah("run", "--isolation", "chroot", container, "--", "true", ok=False)).startswith("failed"):
        pytest.skip(f"this machine runs no containers: {tried}")
    buildah("rm", container)


def outside() -> list[str]:
    """The mounts by which pip reaches and trusts in the container what it does on this machine."""
    said = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    named = {Path(path) for path in re.findall(r"(?<![:/\w])(?:file://)?(/[\w./-]+)", said.stdout)}
    # An index in a folder keeps its files beside its pages.
    folders = sorted({path.parent if path.name == "simple" else path for path in named if path.is_dir()})
    files = (Path("/etc/pip.conf"), Path("~/.config/pip/pip.conf").expanduser(), Path("/etc/ssl/certs"))
    return [f"--volume={path}:{path}:ro" for path in (*files, *folders) if path.exists()]


@pytest.fixture(scope="module")
def build(base: None, buildah: Buildah) -> Build:
    """Return what builds an image, by its tag and options; layers that are there already stay."""
    del base

    @functools.cache
    def once(tag: str, *options: str | Path) -> str:
        built = buildah("bud", "--isolation", "chroot", "--pull-never", "--layers", "-t", tag, *options, ok=False)
        if "NewConnectionError" in built or "ReadTimeoutError" in built:
            pytest.skip("no package index is reached from a container here")
        assert not built.startswith("failed"), built[-3_000:]
        return tag

    return once


def ours(build: Build, name: str) -> str:
    """Build an image of the Dockerfile as its first lines say."""
    return build(f"localhost/malaria/{name}", "-f", DOCKERFILE, f"--build-arg=IMAGE={name}", *outside(), ".")


@pytest.fixture(scope="module", params=[pytest.param(image, id=image) for image in IMAGES if image in BUILT])
def image(request: pytest.FixtureRequest, build: Build, buildah: Buildah) -> Iterator[tuple[str, str]]:
    """An image's name and a container of it."""
    name = str(request.param)
    container = buildah("from", "--pull-never", ours(build, name))
    yield name, container
    buildah("rm", container)


def test_it_has_what_it_needs_and_no_more_and_runs_as_a_user(image: tuple[str, str], buildah: Buildah) -> None:
    name, container = image

    def run(*command: str, ok: bool = True) -> str:
        return buildah("run", "--isolation", "chroot", container, "--", *command, ok=ok)

    assert run("id", "-u") == "10001"
    assert run("retrain", "--version") == f"retrain {version()}"
    assert "/data" in run("retrain", "settings")
    flow = "flows.retrain" if name == "orchestration" else "flows.train"
    run("python", "-c", f"import {flow}, mlflow.onnx, infra.registry.registry")
    has = {"fastai": name == "fastai", "torch": name == "fastai", "tensorflow": name == "keras", "pytest": False}
    for module, wanted in has.items():
        assert run("python", "-c", f"import {module}", ok=False).startswith("failed") == (not wanted), module
    # Its code is root's; what it writes goes to its volume.
    assert run("sh", "-c", "touch /app/x 2>/dev/null || echo refused") == "refused"
    assert run("sh", "-c", "touch /data/x && echo written") == "written"
    if name != "orchestration":
        assert name in run("retrain", "devices")


@pytest.fixture
def stack(build: Build, folder: Path, tmp_path: Path) -> Iterator[Stack]:
    """The stack of the compose file, with our image and what stands in for a registry's; nothing of it runs yet."""
    image = ours(build, "orchestration")
    context = shutil.copytree(STAND_INS, tmp_path / "stand-ins")
    (context / "lock.txt").write_text(pick((ROOT / "requirements.txt").read_text(), ["moto"]))
    # Debian's packages write their certificates where pip wants this machine's.
    for name, mounts in (("postgres", []), ("s3", outside())):
        asked = FILE["services"][name]["image"]
        target = re.split("[/:]", asked)[-2]
        build(f"docker.io/{'' if '/' in asked else 'library/'}{asked}", "--target", target, *mounts, context)
    with stack_of(tmp_path, folder / "layers", image) as made:
        yield made


def test_the_how_tos_lines_bring_up_a_stack_that_promotes_and_keeps_it(stack: Stack, tmp_path: Path) -> None:
    """Import, a night through both pools, down and up again: what compose is told is the document's own."""
    for key, data in plain_cells(30, 4).items():
        path = tmp_path / "cells" / Path(*Path(key).parts[1:])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    [block] = [block for block in blocks("bash") if "docker compose" in block.text]
    here = {"infra/deploy/compose.env": str(stack.secrets), "$PWD/cells:/cells:ro": f"{tmp_path}/cells:/cells:ro"}
    copied, *lines = [[here.get(word, word) for word in words] for _, words in block.commands() if words]
    up, imported, night, down = [words[2:] for words in lines]
    stack.run(*copied)
    stack.fill_in()
    stack.compose(*up)

    prefect, mlflow, site = (f"http://127.0.0.1:{port}" for port in (4200, 5000, 8765))
    login = VALUES["MLFLOW_USER"], VALUES["MLFLOW_PASSWORD"]
    reader = VALUES["PREFECT_AUTH"].split(":")
    asked = f"{prefect}/api/deployments/name/retrain/nightly"
    index = f"{site}/reports/index.html"
    champion = f"{mlflow}/api/2.0/mlflow/registered-models/alias?name=malaria-cell&alias=champion"
    for address in (asked, f"{mlflow}/", champion, index):
        assert stack.get(address)[0] == 401, address
    # What `deploy` ended with, before any worker was started.
    assert stack.get(asked, *reader)[0] == 200
    assert stack.get(champion, *login)[0] == 404

    stack.compose(*imported)
    stack.compose(*night)
    for name in MODELS:
        assert f"{name}, member 1, epoch" in stack.log(f"worker-{name}")
    until(lambda: "first champion" in stack.get(index, *reader)[1])

    stack.compose(*down)
    assert stack.run("podman", "ps", "--all", "--quiet").stdout == ""
    stack.compose(*up)
    until(lambda: stack.get(champion, *login)[0] == 200)
    until(lambda: "first champion" in stack.get(index, *reader)[1])
