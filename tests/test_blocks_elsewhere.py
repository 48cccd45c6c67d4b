"""Blocks of the how-tos for machines that a test has not: checked as far as the tools do without such a machine.

``CHECKED`` says for every command how far that is. What a document says
of them as a whole was not seen to run.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from infra.environment import environment_kept
from tests import ROOT
from tests.nights import Nights
from tests.test_snippets import Block, blocks, parse

pytestmark = pytest.mark.thorough

# How far each command of a block that is not run is checked, by its beginning.
CHECKED = {
    "cp": "the file is there",
    "docker compose": "run by podman-compose where podman runs: tests/infra/deploy/test_containers.py",
    "kubectl create": "run by kubectl: --dry-run=client; on an API server in tests/infra/deploy/test_cluster.py",
    "kubectl apply": "run on a cluster's API server in tests/infra/deploy/test_cluster.py",
    "python -m infra.deploy.kubernetes.make": "run",
    "prefect": "parsed by Prefect's own command line; run in tests/infra/deploy/test_cluster.py",
    "make": "the target is there: tests/test_snippets.py; run in tests/infra/deploy/test_cluster.py",
    ".venv/bin/pip install": "the extra is there",
    "retrain": "run on a local cluster",
}


def elsewhere() -> list[Block]:
    return [block for block in blocks("bash") if block.reason]


def commands(beginning: str) -> list[list[str]]:
    """Every command of these blocks that begins so, each side of a pipe by itself, without its redirection."""
    found = []
    for block in elsewhere():
        for line in block.text.replace("\\\n", " ").splitlines():
            for part in re.split(r"\s\|\s", line):
                words = shlex.split(part.split(" > ")[0], comments=True)
                words = words[next((i for i, word in enumerate(words) if not re.match(r"[A-Z_]+=", word)), 0) :]
                if shlex.join(words).startswith(beginning):
                    found.append(words)
    return found


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def test_every_command_says_how_far_it_is_checked() -> None:
    assert [words for words in commands("") if words and not shlex.join(words).startswith(tuple(CHECKED))] == []
    assert [beginning for beginning in CHECKED if not commands(beginning)] == []


def test_the_files_that_they_name_are_there() -> None:
    [[_, example, copy]] = commands("cp")
    assert (ROOT / example).is_file()
    for words in commands("docker compose"):
        assert words[2:6] == ["--env-file", copy, "-f", "infra/deploy/compose.yaml"]
    assert (ROOT / "infra/deploy/compose.yaml").is_file()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    [install] = commands(".venv/bin/pip install")
    assert re.findall(r"\[(\w+)\]", install[-1]) == ["dask"]
    assert "dask" in extras


def test_kubectl_makes_what_the_jobs_take_their_settings_and_identities_from(tmp_path: Path) -> None:
    kubectl = tool("kubectl")
    (tmp_path / "identities.env").write_text("AWS_ACCESS_KEY_ID=a\nPREFECT_API_AUTH_STRING=b:c\n")
    made = {}
    for words in commands("kubectl create"):
        asked = [kubectl, *words[1:], "--dry-run=client", "--output=yaml"]
        done = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        thing = yaml.safe_load(done.stdout)
        made[thing["kind"]] = thing
    assert {thing["metadata"]["name"] for thing in made.values()} == {"malaria"}
    assert made["ConfigMap"]["data"]["RETRAIN_TRAINING__WHERE"] == "deployment"
    assert set(made["Secret"]["data"]) == {"AWS_ACCESS_KEY_ID", "PREFECT_API_AUTH_STRING"}


def test_what_kubernetes_is_given_is_printed() -> None:
    asked = commands("python -m infra.deploy.kubernetes.make")
    assert [words[-1] for words in asked] == ["claims", "cpu", "gpu", "workers"]
    for words in asked:
        done = subprocess.run([sys.executable, *words[1:]], cwd=ROOT, capture_output=True, check=True, timeout=600)
        assert json.loads(done.stdout)


def test_prefects_command_line_knows_the_options() -> None:
    helps: dict[str, str] = {}
    deployments = {entry["name"] for entry in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]}
    for words in commands("prefect "):
        name = " ".join(words[1:3])
        if name not in helps:
            asked = [sys.executable, "-m", "prefect", *words[1:3], "--help"]
            helps[name] = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=600).stdout
        assert [word for word in words if word.startswith("--") and word not in helps[name]] == [], words
        if name == "deployment run":
            assert words[3].partition("/")[2] in deployments


@pytest.mark.parametrize("block", blocks("ini"), ids=str)
def test_systemd_takes_the_unit(block: Block, tmp_path: Path) -> None:
    systemd = tool("systemd-analyze")
    [start] = re.findall(r"^ExecStart=(.*)$", block.text, re.MULTILINE)
    program, *arguments = shlex.split(start)
    assert Path(program).name == "retrain"
    parse(arguments)
    for unit, complaint in (
        # systemd wants the program to be there.
        (block.text.replace(program, "/bin/true"), ""),
        (block.text.replace(program, "/bin/true").replace("Restart=", "Restrat="), "Restrat"),
    ):
        path = tmp_path / "retrain.service"
        path.write_text(unit)
        done = subprocess.run([systemd, "verify", path], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        assert complaint in done.stderr if complaint else done.stderr == ""


@pytest.fixture
def nights(tmp_path: Path, empty_registry: Path, prefect_url: str) -> Iterator[Nights]:
    made = Nights(tmp_path, empty_registry, PREFECT_API_URL=prefect_url)
    yield made
    made.close()


@pytest.mark.server
@pytest.mark.slow
def test_a_night_runs_on_a_dask_cluster_as_the_block_says(nights: Nights) -> None:
    pytest.importorskip("prefect_dask", reason="the extra dask is not installed: pip install '.[dask]'")
    from distributed import LocalCluster

    [words] = commands("retrain")
    [given] = [line for block in elsewhere() for line in block.text.splitlines() if "RETRAIN_ENGINE=" in line]
    engine = given.split()[0].partition("=")[2]
    with environment_kept():
        cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", protocol="tcp")
    with cluster:
        engine = engine.replace("tcp://scheduler.example:8786", cluster.scheduler_address)
        # As many new images as are worth an engine.
        told = nights.run(nights.home("home", patients=510), *words[1:], RETRAIN_ENGINE=engine)
    assert told.code == 0, told.err
    assert f"the engine {engine} has 2 workers" in told.err
