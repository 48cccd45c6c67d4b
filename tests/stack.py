"""infra/deploy/compose.yaml in containers: podman and podman-compose in namespaces of their own.

The namespaces (mounts, network, processes) end with their first process, and with them every container, bridge and rule
of a firewall. Hidden in them are the folder of the control groups, so that podman runs where it may make none, and what
a podman of this machine writes down about itself.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests import ROOT
from tests.fleet import EAGER, MODELS, fake_environment

FILE: dict[str, Any] = yaml.safe_load((ROOT / "infra/deploy/compose.yaml").read_text())
STAND_INS = ROOT / "tests/infra/deploy/stand_ins"
PROGRAMS = ("podman", "crun", "catatonit", "iptables", "setpriv", "unshare", "nsenter")
WITHIN = """
for place in /sys/fs/cgroup /run /dev/shm; do mount -t tmpfs none "$place" || exit; done
ip link set lo up && echo ready && exec catatonit -P
"""
VALUES = {
    "POSTGRES_PASSWORD": "secretOfPostgres",
    "S3_USER": "test-key",
    "S3_PASSWORD": "test-secret",
    "PREFECT_AUTH": "operator:secretOfPrefect",
    "MLFLOW_USER": "operator",
    "MLFLOW_PASSWORD": "secretOfMlflow",
    "MLFLOW_SECRET_KEY": "x" * 32,
}
ENGINE = """
[containers]
cgroups = "disabled"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
[network]
network_backend = "netavark"
network_config_dir = "{folder}/networks"
"""
STORAGE = """
[storage]
driver = "overlay"
graphroot = "{folder}/storage"
runroot = "{folder}/run"
[storage.options]
additionalimagestores = ["{images}"]
"""
# Asked within, by whoever has the login that is given, or none: status and text.
ASK = """
import sys, httpx
answer = httpx.get(sys.argv[1], auth=tuple(sys.argv[2:]) or None, trust_env=False, timeout=120)
print(answer.status_code, answer.text)
"""


class Stack:
    """The services of the compose file, in containers of images that ``images`` holds; all else is below ``folder``."""

    def __init__(self, folder: Path, images: Path) -> None:
        self.folder = folder
        self.secrets = folder / "compose.env"
        for name, text in (("containers", ENGINE), ("storage", STORAGE)):
            (folder / f"{name}.conf").write_text(text.format(folder=folder, images=images))
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("COMPOSE_", *VALUES))},
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
            "DISABLE_HC_SYSTEMD": "true",
        }
        alone = ["setpriv", "--pdeathsig=KILL"]
        alone += ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", WITHIN]
        self._namespaces = subprocess.Popen(alone, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert self._namespaces.stdout is not None
        if (said := self._namespaces.stdout.readline().strip()) != "ready":
            pytest.skip(f"this machine gives no namespaces: {said}")

    def run(self, *words: str | Path, ok: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command within."""
        [first] = psutil.Process(self._namespaces.pid).children()
        enter = ["nsenter", "--target", str(first.pid), "--mount", "--net", "--pid"]
        done = subprocess.run(
            [*enter, f"--wd={ROOT}", *words], env=self._environment, capture_output=True, text=True, check=False
        )
        assert not ok or done.returncode == 0, f"{words}\n{(done.stdout + done.stderr)[-6_000:]}"
        return done

    def compose(self, *words: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of compose, by the words that come after ``docker compose``."""
        program = [str(Path(sys.executable).parent / "podman-compose"), "--podman-path", str(self.folder / "podman")]
        at = words.index("-f") + 2
        return self.run(*program, *words[:at], "-f", str(self.folder / "beside.yaml"), *words[at:], ok=ok)

    def get(self, url: str, *login: str) -> tuple[int, str]:
        """Ask a published address, with a name and a password or without."""
        status, _, text = self.run(sys.executable, "-c", ASK, url, *login).stdout.partition(" ")
        return int(status), text

    def log(self, service: str) -> str:
        done = self.run("podman", "logs", f"{FILE['name']}_{service}_1")
        return done.stdout + done.stderr

    def fill_in(self) -> None:
        """Give every variable of the example that is left empty, and needed, a value."""
        lines = self.secrets.read_text().splitlines()
        self.secrets.write_text("".join(f"{line}{VALUES.get(line.removesuffix('='), '')}\n" for line in lines))

    def put_beside(self) -> None:
        """Write what podman-compose needs besides the compose file, and what makes its nights short."""
        shutil.copy(STAND_INS / "podman.sh", self.folder / "podman")
        (self.folder / "podman").chmod(0o755)
        files = self.folder / "files"
        files.mkdir()
        environment = fake_environment(files, Path("/data"), RETRAIN_TRAINING__MEMBERS="1")
        fake = ROOT / "tests" / "fake_cnn.py"
        trains = {
            "environment": {
                **{name: value for name, value in environment.items() if name.startswith(("RETRAIN_", "PREFECT_"))},
                "PYTHONPATH": f"{files}/site:/app",
            },
            "volumes": [f"{files}:{files}:ro", f"{fake}:{fake}:ro"],
        }
        services: dict[str, dict[str, Any]] = dict.fromkeys(("deploy", "worker-cpu"), trains)
        services["prefect"] = {"environment": EAGER}
        # The images that train for real are gigabytes more. This one has all that fake CNNs want.
        services |= {f"worker-{name}": {**trains, "image": "malaria/orchestration"} for name in MODELS}
        # podman-compose knows neither configs nor secrets that are variables.
        for name, service in FILE["services"].items():
            for config in service.get("configs", []):
                path = files / config["source"]
                path.write_text(FILE["configs"][config["source"]]["content"])
                services.setdefault(name, {})["volumes"] = [f"{path}:{config['target']}:ro"]
        (files / "postgres").write_text(VALUES["POSTGRES_PASSWORD"])
        secret = f'secrets: {{postgres: {{environment: !reset null, file: "{files}/postgres"}}}}\n'
        pods = "x-podman: {in_pod: false}\n"
        (self.folder / "beside.yaml").write_text(f"services: {json.dumps(services)}\n{secret}{pods}")

    def close(self) -> None:
        with self._namespaces:  # which closes its pipe, and waits
            self._namespaces.kill()


@contextmanager
def stack_of(folder: Path, images: Path, image: str) -> Iterator[Stack]:
    """Yield the stack, nothing of which runs yet; skip where podman runs no container."""
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    stack = Stack(folder, images)
    try:
        stack.run("podman", "network", "create", "tried", ok=False)
        tried = stack.run("podman", "run", "--rm", "--init", "--network=tried", image, "true", ok=False)
        if tried.returncode:
            pytest.skip(f"podman runs no container here: {tried.stderr.strip()[-300:]}")
        stack.put_beside()
        yield stack
    finally:
        stack.close()
