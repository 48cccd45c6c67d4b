"""What cannot be run without a container engine or a cluster is checked, by the tools' own checkers where there are."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.deploy.images.pick import LEFT_OUT, canonical, pick, without
from infra.deploy.kubernetes.make import HERE, default, template
from tests import ROOT

INFRA = ROOT / "infra" / "deploy"
LOCK = (ROOT / "requirements.txt").read_text()


def tool(name: str) -> str:
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def names(lock: str) -> set[str]:
    return {canonical(line.split("==")[0]) for line in lock.splitlines() if re.match(r"[a-zA-Z0-9]", line)}


def test_the_dockerfile_pleases_its_linter() -> None:
    done = subprocess.run([tool("hadolint"), str(INFRA / "images" / "Dockerfile")], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"")


def test_the_dockerfile_is_pinned_and_not_roots() -> None:
    text = (INFRA / "images" / "Dockerfile").read_text()
    assert "--require-hashes" in text
    assert re.search(r"^USER 10001:10001$", text, re.M)
    assert set(re.findall(r"^FROM (\S+)", text, re.M)) == {"python:3.11-slim-bookworm"}
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert ignored[0] == "*"  # nothing that is not named: no store, no secrets, no virtual environment
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.M):
        for part in source.split():
            assert f"!{part.split('/')[0]}" in ignored


@pytest.mark.parametrize("image", LEFT_OUT)
def test_an_image_gets_what_it_needs_from_the_lock_and_no_more(image: str) -> None:
    listed = (INFRA / "images" / f"{image}.without").read_text().split()
    if importlib.util.find_spec("torch") and importlib.util.find_spec("tensorflow"):
        assert listed == without(image, ROOT / "pyproject.toml"), "python infra/deploy/images/pick.py --renew"
    lock = pick(LOCK, listed)
    kept = names(lock)
    assert kept == names(LOCK) - set(listed)
    assert {"prefect", "onnxruntime", "mlflow", "boto3", "psycopg2-binary", "pandas"} <= kept
    assert not {"pytest", "moto", "ruff", "mypy", "playwright"} & kept
    frameworks = {"fastai": {"torch", "fastai"}, "keras": {"tensorflow", "keras"}}.get(image, set())
    assert kept & {"torch", "fastai", "tensorflow", "keras"} == frameworks
    # Each package with the very lines of the lock, its hashes among them.
    assert set(lock.splitlines()) <= set(LOCK.splitlines())
    assert lock.count("--hash=sha256:") > len(kept)


@pytest.mark.parametrize(("image", "module"), [("orchestration", "flows.retrain"), ("fastai", "flows.train")])
def test_what_an_image_leaves_out_is_not_needed_by_its_flow(image: str, module: str) -> None:
    listed = {name.replace("-", "_") for name in (INFRA / "images" / f"{image}.without").read_text().split()}
    code = (
        "import sys, importlib.abc\n"
        "class Gone(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name.split('.')[0].lower() in {listed!r}: raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Gone())\n"
        f"import {module}, flows.unattended.alerts, infra.registry.registry, mlflow, mlflow.onnx"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_compose_file_keeps_the_specification() -> None:
    command = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(INFRA / "compose.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_compose_file_holds_no_secret_and_waits_for_health() -> None:
    text = (INFRA / "compose.yaml").read_text()
    services: dict[str, Any] = yaml.safe_load(text)["services"]
    example = {line.split("=")[0] for line in (INFRA / "compose.env.example").read_text().splitlines() if "=" in line}
    assert set(re.findall(r"\$\{(\w+)", text)) - example == {"MALARIA_CODE"}
    for name, service in services.items():
        for waited in service.get("depends_on", {}):
            assert waited == "deploy" or "healthcheck" in services[waited], name
        # Nothing is to be reached from outside the machine without a decision.
        assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", [])), name
    for name in ("POSTGRES_PASSWORD", "S3_PASSWORD", "PREFECT_AUTH", "MLFLOW_PASSWORD", "MLFLOW_SECRET_KEY"):
        assert f"{name}=\n" in (INFRA / "compose.env.example").read_text()


@pytest.mark.parametrize("pool", ["cpu", "gpu"])
def test_a_job_template_is_what_it_is_made_to_be_and_uses_every_variable(pool: str) -> None:
    kept = json.loads((HERE / f"{pool}.json").read_text())
    assert kept == template(pool), "python -m infra.deploy.kubernetes.make"
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(kept["job_configuration"])))
    # Prefect ignores in silence what a job does not name.
    assert used == set(kept["variables"]["properties"])
    assert set(default()["variables"]["properties"]) <= used
    assert set(kept["job_configuration"]) == set(default()["job_configuration"])


def test_prefect_fills_a_gpu_job_in_as_kubernetes_wants_it() -> None:
    from prefect.utilities.templating import apply_values

    made = template("gpu")
    values = {
        name: schema["default"] for name, schema in made["variables"]["properties"].items() if "default" in schema
    }
    job = apply_values(made["job_configuration"], {**values, "image": "malaria/fastai", "name": "night"})
    pod = job["job_manifest"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert pod["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}} in pod["volumes"]
    assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert "{{" not in json.dumps(pod)


def test_the_server_takes_the_templates() -> None:
    """Prefect's own check of a template, which its server makes when a pool is created."""
    from prefect.server.schemas.actions import WorkPoolCreate

    for pool in ("cpu", "gpu"):
        kept = json.loads((HERE / f"{pool}.json").read_text())
        WorkPoolCreate(name=pool, type="kubernetes", base_job_template=kept)
        broken = {**kept, "job_configuration": {**kept["job_configuration"], "extra": "{{ unheard_of }}"}}
        with pytest.raises(ValueError, match="unheard_of"):
            WorkPoolCreate(name=pool, type="kubernetes", base_job_template=broken)
