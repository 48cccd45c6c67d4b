"""What cannot be run without a container engine or a cluster is checked, by the tools' own checkers where there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from contextlib import suppress
from importlib import metadata
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from packaging.requirements import Requirement

from infra.deploy.images.pick import IMAGES, LEFT_OUT, package_name, pick, pick_image, required
from infra.deploy.kubernetes.make import claims, default, template, workers
from tests import ROOT

pytestmark = pytest.mark.thorough

INFRA = ROOT / "infra" / "deploy"
LOCK = (ROOT / "requirements.txt").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def tool(name: str) -> str:
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def names(lock: str) -> set[str]:
    return {package_name(line) for line in lock.splitlines() if re.match(r"[a-zA-Z0-9]", line)}


def picked(image: str) -> str:
    """What the Dockerfile's line prints."""
    program = ROOT / "infra" / "deploy" / "images" / "pick.py"
    return subprocess.run([sys.executable, program, image], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def needed_by(requirements: list[str]) -> set[str]:
    """All packages that some requirements need, by the metadata of what is installed."""
    found: set[str] = set()
    waiting = [(Requirement(line), "") for line in requirements]
    seen = set()
    while waiting:
        wanted, extra = waiting.pop()
        if str(wanted) in seen or (wanted.marker and not wanted.marker.evaluate({"extra": extra})):
            continue
        seen.add(str(wanted))
        found.add(package_name(wanted.name))
        with suppress(PackageNotFoundError):
            lines = metadata.requires(wanted.name) or []
            waiting += [(Requirement(line), part) for line in lines for part in ("", *wanted.extras)]
    return found


def test_the_dockerfile_passes_its_linter() -> None:
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


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_gets_what_it_needs_from_the_lock_and_no_more(image: str) -> None:
    lock = picked(image)
    assert lock == pick_image(image, LOCK, PROJECT)
    kept = names(lock)
    left_out = LEFT_OUT.get(image, set())
    direct = [*PROJECT["dependencies"]]
    for extra in IMAGES[image]:
        direct += PROJECT["optional-dependencies"][extra]
    assert needed_by([line for line in direct if package_name(line) not in left_out]) & names(LOCK) <= kept
    assert {"prefect", "onnxruntime", "mlflow", "boto3", "psycopg2-binary", "pandas", "filelock", "psutil"} <= kept
    assert not {"pytest", "moto", "ruff", "mypy", "playwright", "hypothesis", "prefect-dask"} & kept
    assert not left_out & kept
    frameworks = {"fastai": {"torch", "fastai"}, "keras": {"tensorflow", "keras"}}.get(image, set())
    assert kept & {"torch", "fastai", "tensorflow", "tensorflow-cpu", "keras"} == frameworks
    assert any(name.startswith("nvidia-") for name in kept) == (image != "orchestration")
    # Each package with the very lines of the lock, its hashes among them.
    assert set(lock.splitlines()) <= set(LOCK.splitlines())
    assert lock.count("--hash=sha256:") > len(kept)


def test_the_lock_names_for_each_package_what_requires_it() -> None:
    assert required(PROJECT, PROJECT["optional-dependencies"]) - names(LOCK) == set()
    assert len(re.findall(r"^    # via \S", LOCK, re.M)) == len(re.findall(r"^[^ #\n]+==", LOCK, re.M))


def test_an_image_gets_every_platforms_version_of_a_package() -> None:
    lock = "a==1 ; sys_platform == 'linux'\n    # via c\na==2\n    # via prefect\nb==1\n    # via c\n"
    assert pick(lock, ["prefect"]) == lock.partition("b==")[0]


@pytest.mark.parametrize(("image", "module"), [("orchestration", "flows.retrain"), ("fastai", "flows.train")])
def test_what_an_image_leaves_out_is_not_needed_by_its_flow(image: str, module: str) -> None:
    left_out = {name.replace("-", "_") for name in names(LOCK) - names(picked(image))}
    code = (
        "import sys, importlib.abc\n"
        "class Gone(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name.split('.')[0].lower() in {left_out!r}: raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Gone())\n"
        f"import {module}, flows.unattended.alerts, infra.registry.registry, mlflow, mlflow.onnx"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("schema", "file"),
    [("compose-spec", "infra/deploy/compose.yaml"), ("github-workflows", ".github/workflows/ci.yml")],
)
def test_a_file_keeps_its_specification(schema: str, file: str) -> None:
    command = [tool("check-jsonschema"), "--builtin-schema", f"vendor.{schema}", str(ROOT / file)]
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


def test_all_that_writes_links_knows_where_readers_reach_the_pages_they_lead_to() -> None:
    services: dict[str, Any] = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]
    pages = {"PREFECT_UI_URL": services["prefect"]["ports"], "RETRAIN_SITE__ADDRESS": services["site"]["ports"]}
    ours = [name for name, service in services.items() if "RETRAIN_STORE" in (service.get("environment") or {})]
    assert set(ours) == set(services) - {"postgres", "s3", "prefect", "mlflow"}
    for name in ours:
        for variable, [port] in pages.items():
            published = str(port).rpartition(":")[0]
            assert services[name]["environment"][variable] == f"${{{variable}:-http://{published}}}", name
    site = services["site"]["environment"]
    # What `retrain site` wants before it serves other machines, and the login that Prefect's page asks for.
    assert site["RETRAIN_SITE__HOST"] == "0.0.0.0"
    assert site["RETRAIN_UP__AUTH"] == services["prefect"]["environment"]["PREFECT_SERVER_API_AUTH_STRING"]


@pytest.mark.parametrize("pool", ["cpu", "gpu"])
def test_a_job_template_is_printed_and_uses_every_variable(pool: str) -> None:
    command = [sys.executable, "-m", "infra.deploy.kubernetes.make", pool]
    made = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)
    assert made == template(pool)
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(made["job_configuration"])))
    # Prefect ignores in silence what a job does not name.
    assert used == set(made["variables"]["properties"])
    assert set(default()["variables"]["properties"]) <= used
    assert set(made["job_configuration"]) == set(default()["job_configuration"])


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
    assert {"name": "data", "persistentVolumeClaim": {"claimName": "malaria-gpu"}} in pod["volumes"]
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}} in pod["volumes"]
    assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert "{{" not in json.dumps(pod)


def test_the_server_accepts_the_templates() -> None:
    """Prefect's own check of a template, which its server makes when a pool is created."""
    from prefect.server.schemas.actions import WorkPoolCreate

    for pool in ("cpu", "gpu"):
        made = template(pool)
        WorkPoolCreate(name=pool, type="kubernetes", base_job_template=made)
        broken = {**made, "job_configuration": {**made["job_configuration"], "extra": "{{ unheard_of }}"}}
        with pytest.raises(ValueError, match="unheard_of"):
            WorkPoolCreate(name=pool, type="kubernetes", base_job_template=broken)


@pytest.mark.parametrize("pool", ["cpu", "gpu"])
@pytest.mark.parametrize("version", ["1.28", "1.37"])
def test_a_job_as_the_worker_creates_it_passes_the_strict_schema(pool: str, version: str) -> None:
    """Of the oldest and the newest Kubernetes that is meant; the worker's own class fills it in."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    validate = kubernetes_validate.validate
    worker = pytest.importorskip("prefect_kubernetes.worker")
    from prefect.client.schemas.objects import FlowRun
    from prefect.utilities.templating import apply_values

    made = template(pool)
    given = {name: known["default"] for name, known in made["variables"]["properties"].items() if "default" in known}
    filled = apply_values(made["job_configuration"], given | {"name": "night", "env": {"RETRAIN_STORE": "s3://cells"}})
    job = worker.KubernetesWorkerJobConfiguration.model_validate(filled)
    job.prepare_for_flow_run(FlowRun(name="night", flow_id=uuid4()))
    validate(job.job_manifest, version, strict=True)
    [container] = job.job_manifest["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["prefect", "flow-run", "execute"]
    assert set(container["resources"]["requests"]) == {"cpu", "memory"}
    claimed = [disk for disk in claims()["items"] if disk["metadata"]["name"] == f"malaria-{pool}"]
    assert len(claimed) == 1
    validate(claimed[0], version, strict=True)
    for item in workers()["items"]:
        validate(item, version, strict=True)
    # It is strict: Prefect's own default is refused.
    wrong = apply_values(default()["job_configuration"], {"name": "night", "image": "prefect"})["job_manifest"]
    with pytest.raises(kubernetes_validate.ValidationError, match="completions"):
        validate(wrong, version, strict=True)
